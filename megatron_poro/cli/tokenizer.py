"""``poro tokenizer``: train a tokenizer, look into one.

Imports neither torch nor transformers.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_poro.data.documents import read_texts
from megatron_poro.errors import DataError, PoroError
from megatron_poro.tokenizer.bytes import missing_bytes
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.tokenizer.training import train_bpe


def main(argv: Sequence[str]) -> int:
    """Runs ``poro tokenizer`` with the arguments after it; returns the exit status."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], None] = arguments.run
    try:
        run(arguments)
    except PoroError as error:
        print(f"poro tokenizer: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poro tokenizer", description="Train a tokenizer, look into one.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    train = verbs.add_parser("train", help="corpus files -> a tokenizer folder that transformers can load")
    train.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE[:KEY]",
        help=".jsonl, .jsonl.gz, .jsonl.zst, .parquet; :KEY where the text has another name than --key",
    )
    train.add_argument("--key", default="text", help="name of the text in a record (default: text)")
    train.add_argument("--vocab-size", type=int, required=True, help="ids, special tokens and bytes included")
    train.add_argument("--output", type=Path, required=True, metavar="DIR")
    train.add_argument(
        "--no-byte-alphabet",
        action="store_true",
        help="only bytes that occur in the input get a token, as in the original; text with others is lost",
    )
    train.add_argument("--overwrite", action="store_true", help="replace a tokenizer that is in DIR")
    train.set_defaults(run=_train)

    inspect = verbs.add_parser("inspect", help="print a tokenizer's numbers, and the tokens of a text")
    inspect.add_argument("folder", type=Path, metavar="DIR")
    inspect.add_argument("text", nargs="?", metavar="TEXT", help="encode this and print each token")
    inspect.set_defaults(run=_inspect)
    return parser


def _train(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    inputs = [_Input.parse(entry, arguments.key) for entry in arguments.input]
    output: Path = arguments.output
    if (output / "tokenizer.json").exists() and not arguments.overwrite:
        raise DataError(
            f"{output} already holds a tokenizer, and data tokenized with it would no longer fit: "
            "choose another --output, or give --overwrite."
        )
    tokenizer = train_bpe(
        _texts(inputs),
        arguments.vocab_size,
        byte_alphabet=not arguments.no_byte_alphabet,
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.save(output)
    print(f"{output}: {_summary(tokenizer)}, {time.monotonic() - started:.1f} s")


class _Input(NamedTuple):
    """A corpus file and the name of the text in its records."""

    path: Path
    key: str

    @classmethod
    def parse(cls, entry: str, key: str) -> "_Input":
        """Reads ``FILE`` or ``FILE:KEY``; a file whose own name holds a colon is taken as it is."""
        name, colon, own_key = entry.rpartition(":")
        if not colon or Path(entry).exists():
            return cls(Path(entry), key)
        return cls(Path(name), own_key)


def _texts(inputs: Sequence[_Input]) -> Iterator[str]:
    for path, key in inputs:
        yield from read_texts(path, key=key)


def _inspect(arguments: argparse.Namespace) -> None:
    tokenizer = Tokenizer.load(arguments.folder)
    print(f"tokenizer    {arguments.folder}")
    print(f"ids          {tokenizer.vocab_size:,}")
    roles = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "unk": tokenizer.unk_id}
    print(f"special      {', '.join(f'{role} {token}' for role, token in roles.items())}")
    lost = missing_bytes(tokenizer)
    print(f"lost bytes   {', '.join(f'{byte:02x}' for byte in lost) if lost else 'none: any text survives'}")
    print(f"fingerprint  {tokenizer.fingerprint}")
    if arguments.text is not None:
        _print_tokens(tokenizer, arguments.text)


def _print_tokens(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    print()
    for token in ids:
        print(f"{token:>8}  {tokenizer.decode([token])!r}")
    words = len(text.split())
    fertility = f", {len(ids) / words:.2f} per word" if words else ""
    kept = "" if tokenizer.decode(ids) == text else ", and decoding them does NOT give the text back"
    print(f"{len(ids)} tokens{fertility}{kept}")


def _summary(tokenizer: Tokenizer) -> str:
    lost = len(missing_bytes(tokenizer))
    losses = f", {lost} bytes without a token" if lost else ""
    return f"{tokenizer.vocab_size:,} ids{losses}, fingerprint {tokenizer.fingerprint[:12]}"
