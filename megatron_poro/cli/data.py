"""``poro data``: from corpora to a mixture, one verb a step.

A table: a verb's file is imported when it is asked for. None of them needs torch: they run on the login nodes and CPU
partitions where corpora are made.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from megatron_poro.errors import PoroError

USAGE_STATUS = 2


class Verb(NamedTuple):
    """Where a verb's function is (``module:function``, taking the words after the verb), and what it does."""

    target: str
    summary: str


VERBS: dict[str, Verb] = {
    "prepare": Verb("megatron_poro.cli.data_prepare:prepare", "recipes -> tokenizer, datasets, plan and report"),
    "tokenize": Verb("megatron_poro.cli.data_tokenize:tokenize", "corpus files -> an indexed dataset"),
    "merge": Verb("megatron_poro.cli.data_tokenize:merge", "join datasets, or the shards of one"),
    "inspect": Verb("megatron_poro.cli.data_inspect:inspect", "print a dataset's numbers and documents"),
    "audit": Verb("megatron_poro.cli.data_inspect:audit", "prove that datasets are whole, byte by byte"),
    "report": Verb("megatron_poro.cli.data_inspect:report", "what is in datasets: table and picture"),
    "plan": Verb("megatron_poro.cli.data_mixture:plan", "what a run will read of each source"),
    "show": Verb("megatron_poro.cli.data_mixture:show", "the texts of a step, with source and document"),
}


def main(argv: Sequence[str]) -> int:
    """Runs ``poro data`` with the arguments after it; returns the exit status, 2 if the input is at fault."""
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else USAGE_STATUS
    verb = VERBS.get(words[0])
    if verb is None:
        print(f"poro data: {words[0]} is not a verb; use one of {', '.join(VERBS)}.", file=sys.stderr)
        return USAGE_STATUS
    module, _, function = verb.target.partition(":")
    run = cast(Callable[[Sequence[str]], int], getattr(importlib.import_module(module), function))
    try:
        return run(words[1:])
    except PoroError as error:
        print(f"poro data: {error}", file=sys.stderr)
        return USAGE_STATUS


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    head = ["usage: poro data VERB ...", "", "From corpora to a mixture.", ""]
    return "\n".join([*head, *lines, "", "`poro data VERB --help` says more."])
