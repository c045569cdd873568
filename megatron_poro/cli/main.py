"""``poro VERB ...``: one command, whose verbs are imported when they are asked for.

Nothing but the standard library is imported here, so that ``poro --help`` and a mistyped verb answer at once, on a
login node as well. A verb is a function ``main(argv) -> exit status``. An error that is the input's fault ends in one
sentence on stderr and the error's status; anything else is a bug and shows its traceback.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from megatron_poro import __version__
from megatron_poro.errors import PoroError

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells report it


class Verb(NamedTuple):
    """Where a verb's function is (``module:function``), and what it does in one line."""

    target: str
    summary: str


VERBS: dict[str, Verb] = {
    "train": Verb("megatron_poro.cli.train:command", "train a model, or go on with a run"),
    "plan": Verb("megatron_poro.cli.plan:main", "memory, speed and cost of a run in advance, without torch"),
    "submit": Verb("megatron_poro.cli.submit:main", "run it on a Slurm cluster, from job to job to its end"),
    "status": Verb("megatron_poro.cli.status:main", "how a run on a cluster is doing"),
    "logs": Verb("megatron_poro.cli.logs:main", "what the jobs of a run print"),
    "stop": Verb("megatron_poro.cli.stop:main", "save and end a run on a cluster"),
    "resume": Verb("megatron_poro.cli.resume:main", "let a run on a cluster go on"),
    "watch": Verb("megatron_poro.cli.watch:main", "call a command when a run on a cluster needs somebody"),
    "job": Verb("megatron_poro.cli.job:main", "what job scripts ask"),
    "rewind": Verb("megatron_poro.cli.rewind:main", "take a run back to a checkpoint, skipping steps"),
    "generate": Verb("megatron_poro.cli.generate:main", "write text with an exported model"),
    "tokenizer": Verb("megatron_poro.cli.tokenizer:main", "train a tokenizer, or look into one"),
    "data": Verb("megatron_poro.cli.data:main", "tokenise, merge and inspect corpora"),
    "export": Verb("megatron_poro.cli.export:main", "checkpoint -> Hugging Face model, verified"),
    "publish": Verb("megatron_poro.cli.publish:main", "milestones -> branches of a repository on the Hub, verified"),
    "import": Verb("megatron_poro.cli.import_hf:main", "Hugging Face model -> checkpoint"),
    "ckpt": Verb("megatron_poro.cli.ckpt:main", "list, inspect, verify, compare and remove checkpoints"),
    "config": Verb("megatron_poro.cli.config:main", "show, validate and compare configs, without torch"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        argv: the words after ``poro``; ``None`` takes them from the command line.

    Returns:
        The exit status: 0, or the verb's own, or that of the error it ended with (2 if the input is at fault).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else USAGE_STATUS
    if words[0] in ("-V", "--version"):
        print(f"megatron_poro {__version__}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        _complain(_unknown(words[0]))
        return USAGE_STATUS
    return _run(verb, words[1:])


def _run(verb: Verb, argv: list[str]) -> int:
    module, _, function = verb.target.partition(":")
    try:
        run = cast(Callable[[list[str]], int], getattr(importlib.import_module(module), function))
        status = run(argv)
        sys.stdout.flush()
        return status
    except PoroError as error:
        _complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        _complain("interrupted.")
        return INTERRUPTED_STATUS
    except BrokenPipeError:  # the reader of `poro ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere
        return 0


def _complain(sentence: str) -> None:
    """One line per sentence; a rank other than 0 says which it is, since all of them write to one terminal."""
    rank = os.environ.get("RANK", "0")
    who = "poro" if rank == "0" else f"poro (rank {rank})"
    for line in sentence.splitlines():
        print(f"{who}: {line}", file=sys.stderr)


def _unknown(word: str) -> str:
    close = difflib.get_close_matches(word, VERBS, n=1, cutoff=0.5)
    instead = f"did you mean `poro {close[0]}`?" if close else f"use one of {', '.join(VERBS)}."
    return f"{word} is not a verb; {instead}"


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    head = ["usage: poro VERB ...", "", "3D-parallel training of language models.", ""]
    return "\n".join([*head, *lines, "", "`poro VERB --help` says more; `poro --version` prints the version."])


if __name__ == "__main__":
    sys.exit(main())
