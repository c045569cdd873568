"""``poro data``: make, join and look into indexed datasets.

Imports neither torch nor a deep learning library: it runs on the login nodes and CPU partitions where corpora are made.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from megatron_poro import logs
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.merging import merge_datasets
from megatron_poro.data.tokenizing import TokenizingProgress, tokenize_files
from megatron_poro.errors import DataError, PoroError
from megatron_poro.tokenizer.tokenizer import Tokenizer

REPORT_SECONDS = 10.0
_log = logs.get_logger(__name__)

_SHOWN_CHARACTERS = 600
_SCANNED_TOKENS = 1 << 28


def main(argv: Sequence[str]) -> int:
    """Runs ``poro data`` with the arguments after it; returns the exit status."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], None] = arguments.run
    try:
        run(arguments)
    except PoroError as error:
        print(f"poro data: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poro data", description="Make, join and look into indexed datasets.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    tokenize = verbs.add_parser("tokenize", help="corpus files -> PREFIX.bin, PREFIX.idx, PREFIX.meta.json")
    tokenize.add_argument(
        "--input", nargs="+", type=Path, required=True, help=".jsonl, .jsonl.gz, .jsonl.zst, .parquet"
    )
    tokenize.add_argument("--output", type=Path, required=True, metavar="PREFIX")
    tokenize.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder with tokenizer.json")
    tokenize.add_argument("--key", default="text", help="name of the text in a record (default: text)")
    tokenize.add_argument("--workers", type=int, default=_available_cores(), help="processes (default: all cores)")
    tokenize.add_argument("--overwrite", action="store_true", help="replace PREFIX if it exists")
    tokenize.set_defaults(run=_tokenize)

    merge = verbs.add_parser("merge", help="join datasets in the order given")
    merge.add_argument("--input", nargs="+", type=Path, required=True, metavar="PREFIX")
    merge.add_argument("--output", type=Path, required=True, metavar="PREFIX")
    merge.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    merge.set_defaults(run=_merge)

    inspect = verbs.add_parser("inspect", help="check a dataset, print its numbers and its first documents")
    inspect.add_argument("prefix", type=Path, metavar="PREFIX")
    inspect.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="decode with it, and check that it made the data"
    )
    inspect.add_argument("--documents", type=int, default=1, help="documents to print (default: 1)")
    inspect.set_defaults(run=_inspect)
    return parser


def _tokenize(arguments: argparse.Namespace) -> None:
    if arguments.workers < 1:
        raise DataError(f"--workers {arguments.workers} must be at least 1.")
    if arguments.workers > 1:
        # the workers inherit it: each process uses one core instead of all of them using all cores
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logs.configure()
    started = time.monotonic()
    metadata = tokenize_files(
        arguments.input,
        arguments.output,
        load_tokenizer=partial(Tokenizer.load, arguments.tokenizer),
        key=arguments.key,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
        on_progress=_Reporter(started),
    )
    seconds = time.monotonic() - started
    print(
        f"{arguments.output}: {metadata.documents:,} documents, {metadata.tokens:,} tokens, "
        f"{metadata.empty_documents:,} empty documents left out, {seconds:.1f} s, "
        f"{metadata.tokens / max(seconds, 1e-9):,.0f} tokens/s"
    )


class _Reporter:
    """Logs how far tokenizing is, now and then."""

    def __init__(self, started: float) -> None:
        self._started = self._last = started

    def __call__(self, progress: TokenizingProgress) -> None:
        now = time.monotonic()
        if now - self._last < REPORT_SECONDS:
            return
        self._last = now
        rate = progress.tokens / (now - self._started)
        _log.info(f"{progress.documents:,} documents, {progress.tokens:,} tokens, {rate:,.0f} tokens/s")


def _merge(arguments: argparse.Namespace) -> None:
    merged = merge_datasets(arguments.input, arguments.output, overwrite=arguments.overwrite)
    print(
        f"{arguments.output}: {merged.num_documents:,} documents, {merged.num_tokens:,} tokens "
        f"from {len(arguments.input)} datasets"
    )


def _inspect(arguments: argparse.Namespace) -> None:
    dataset = IndexedDataset(arguments.prefix)
    dataset.check_layout()
    tokenizer = None if arguments.tokenizer is None else Tokenizer.load(arguments.tokenizer)
    _print_numbers(dataset)
    metadata = dataset.metadata()
    if metadata is not None:
        print(f"tokenizer        {metadata.tokenizer}")
        print(f"empty documents  {metadata.empty_documents:,} left out")
        print(f"made from        {', '.join(metadata.inputs)}")
    if tokenizer is not None and metadata is not None and tokenizer.fingerprint != metadata.tokenizer:
        raise DataError(
            f"{dataset.prefix} was made with tokenizer {metadata.tokenizer}, {arguments.tokenizer} is "
            f"{tokenizer.fingerprint}: decoded with it, the text would be wrong."
        )
    for number in range(min(arguments.documents, dataset.num_documents)):
        _print_document(dataset, number, tokenizer)


def _print_numbers(dataset: IndexedDataset) -> None:
    sizes = dataset.sizes
    lengths = f"{sizes.min():,} to {sizes.max():,}, mean {sizes.mean():,.1f}" if dataset.num_documents else "none"
    print(f"dataset          {dataset.prefix}")
    print(f"documents        {dataset.num_documents:,}")
    print(f"tokens           {dataset.num_tokens:,}")
    print(f"tokens/document  {lengths}")
    print(f"token type       {dataset.token_type.name}")
    looked_at = min(dataset.num_tokens, _SCANNED_TOKENS)
    print(f"largest id       {dataset.max_token_id(_SCANNED_TOKENS):,} in {looked_at:,} tokens looked at")


def _print_document(dataset: IndexedDataset, number: int, tokenizer: Tokenizer | None) -> None:
    ids = dataset.document(number).tolist()
    ending = ""
    if tokenizer is not None:
        ending = ", ends with the end-of-document token" if ids[-1:] == [tokenizer.eos_id] else ", NOT ENDED"
    print(f"\ndocument {number}: {len(ids):,} tokens{ending}")
    shown = f"ids {ids}" if tokenizer is None else tokenizer.decode(ids)
    print(shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]} ...")


def _available_cores() -> int:
    """Cores this process may use: inside a Slurm job or a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
