"""``poro data inspect``, ``audit`` and ``report``: what is in datasets, and whether it is whole."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_poro.data.audit import audit_dataset
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.report import report_dataset, table, write_picture
from megatron_poro.errors import DataError
from megatron_poro.tokenizer.tokenizer import Tokenizer

_SHOWN_CHARACTERS = 600
_SCANNED_TOKENS = 1 << 28


def inspect(argv: Sequence[str]) -> int:
    """Runs ``poro data inspect``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="poro data inspect", description="Check a dataset's layout, print its numbers and some documents."
    )
    parser.add_argument("prefix", type=Path, metavar="PREFIX")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="decode with it, and check that it made the data")
    parser.add_argument("--documents", type=int, default=1, help="documents to print (default: 1)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them (default: 0)")
    arguments = parser.parse_args(argv)
    dataset = IndexedDataset(arguments.prefix)
    dataset.check_layout()
    tokenizer = None if arguments.tokenizer is None else Tokenizer.load(arguments.tokenizer)
    _print_numbers(dataset)
    metadata = dataset.metadata()
    if metadata is not None:
        print(f"tokenizer        {metadata.tokenizer}")
        print(f"empty documents  {metadata.empty_documents:,} left out")
        print(f"made from        {', '.join(metadata.inputs)}")
    if tokenizer is not None:
        _require_same(dataset, tokenizer, arguments.tokenizer)
    end = min(arguments.first + arguments.documents, dataset.num_documents)
    for number in range(max(0, arguments.first), end):
        _print_document(dataset, number, tokenizer)
    return 0


def audit(argv: Sequence[str]) -> int:
    """Runs ``poro data audit``; returns the exit status, 2 if a dataset has a fault."""
    parser = argparse.ArgumentParser(
        prog="poro data audit",
        description="Read datasets from end to end: header, counts, pointers, lengths, range of the ids, and the "
        "checksums of the manifest. Ends with status 2 if there is any fault, each named with file and offset.",
    )
    parser.add_argument("prefixes", nargs="+", type=Path, metavar="PREFIX")
    arguments = parser.parse_args(argv)
    faulty = 0
    for prefix in arguments.prefixes:
        result = audit_dataset(prefix)
        for fault in result.faults:
            print(f"poro data: {fault}", file=sys.stderr)
        faulty += bool(result.faults)
        print(f"{prefix}: {'FAULTY' if result.faults else 'whole'}; {result.proven}")
    return 2 if faulty else 0


def report(argv: Sequence[str]) -> int:
    """Runs ``poro data report``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="poro data report",
        description="Documents, tokens, bytes per token, lengths, most repeated documents and share of odd characters "
        "of each dataset: a table, and a picture that any browser shows.",
    )
    parser.add_argument("prefixes", nargs="+", type=Path, metavar="PREFIX")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="the one that made the data")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="write the picture there")
    parser.add_argument(
        "--sample", type=int, default=2000, help="documents a dataset that are decoded for bytes and characters"
    )
    arguments = parser.parse_args(argv)
    if arguments.sample < 1:
        raise DataError(f"--sample {arguments.sample} must be at least 1.")
    tokenizer = Tokenizer.load(arguments.tokenizer)
    reports = []
    for prefix in arguments.prefixes:
        dataset = IndexedDataset(prefix)
        dataset.check_layout()
        _require_same(dataset, tokenizer, arguments.tokenizer)
        reports.append(report_dataset(dataset, tokenizer, sample=arguments.sample))
    print(table(reports))
    if arguments.picture is not None:
        write_picture(reports, arguments.picture)
        print(f"picture: {arguments.picture}")
    return 0


def _require_same(dataset: IndexedDataset, tokenizer: Tokenizer, folder: Path) -> None:
    metadata = dataset.metadata()
    if metadata is not None and tokenizer.fingerprint != metadata.tokenizer:
        raise DataError(
            f"{dataset.prefix} was made with tokenizer {metadata.tokenizer}, {folder} is "
            f"{tokenizer.fingerprint}: decoded with it, the text would be wrong."
        )


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
