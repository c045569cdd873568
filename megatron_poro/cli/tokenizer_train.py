"""``poro tokenizer train``: corpus files, in chosen shares -> a tokenizer folder that transformers loads."""

import argparse
import glob
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_poro.config.run import TokenizerKind
from megatron_poro.data.documents import read_texts
from megatron_poro.errors import ConfigError, DataError
from megatron_poro.tokenizer.bytes import missing_bytes
from megatron_poro.tokenizer.sample import plan_shares, take_evenly
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.tokenizer.training import Trainer, train_tokenizer
from megatron_poro.units import parse_count

_EPILOG = """\
Each --input begins a group of files. With --balance or --weights every group gives its share of the characters, in
whole texts spread evenly over the group, without chance; without them all texts are read.

The tokenizer of Poro 34B, equal parts of Finnish, English and code:

  poro tokenizer train --vocab-size 128000 --balance --characters 9B \\
      --input 'finnish/*.jsonl.zst' --input 'slimpajama/*.jsonl.zst' --input 'starcoder/*.parquet:content' \\
      --trainer gigabpe --output tokenizers/poro_34b
"""


class Input(NamedTuple):
    """A corpus file and the name of the text in its records."""

    path: Path
    key: str

    @classmethod
    def parse(cls, entry: str, key: str) -> "list[Input]":
        """Reads ``FILE`` or ``FILE:KEY``; a file whose own name holds a colon is taken as it is.

        Raises:
            DataError: if FILE has wildcards and no file fits.
        """
        name, colon, own_key = entry.rpartition(":")
        if not colon or Path(entry).exists():
            name, own_key = entry, key
        if Path(name).exists() or not glob.has_magic(name):
            return [cls(Path(name), own_key)]
        paths = sorted(glob.glob(name))
        if not paths:
            raise DataError(f"no corpus file fits {name}.")
        return [cls(Path(path), own_key) for path in paths]

    def texts(self) -> Iterator[str]:
        """The texts of the file, in order."""
        return read_texts(self.path, key=self.key)


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Adds ``--input`` and ``--key`` to a command."""
    parser.add_argument(
        "--input",
        nargs="+",
        action="append",
        required=True,
        metavar="FILE[:KEY]",
        help=".jsonl, .jsonl.gz, .jsonl.zst, .parquet; :KEY where the text has another name than --key; "
        "may be given again, FILE may be a quoted pattern",
    )
    parser.add_argument("--key", default="text", help="name of the text in a record (default: text)")


def add_train(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to ``poro tokenizer``."""
    parser = verbs.add_parser(
        "train",
        help="corpus files -> a tokenizer folder that transformers can load",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_inputs(parser)
    parser.add_argument("--vocab-size", type=int, required=True, help="ids, special tokens and bytes included")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--kind",
        choices=[kind.value for kind in TokenizerKind],
        default=TokenizerKind.BLOOM.value,
        help="bloom: byte-level BPE behind BLOOM's split, as in Poro (default); sentencepiece: BPE with byte fallback",
    )
    shares = parser.add_mutually_exclusive_group()
    shares.add_argument("--balance", action="store_true", help="as many characters from each --input")
    shares.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="characters from each --input in these proportions"
    )
    parser.add_argument(
        "--characters",
        metavar="N",
        help="characters of the whole sample, such as 500M; default: until an --input is used up",
    )
    parser.add_argument(
        "--trainer",
        choices=[trainer.value for trainer in Trainer],
        default=Trainer.TOKENIZERS.value,
        help="who learns bloom's merges; the result is the same. gigabpe is faster: pip install gigabpe==0.1.0",
    )
    parser.add_argument(
        "--no-byte-alphabet",
        action="store_true",
        help="only bytes that occur in the input get a token, as in the original; text with others is lost",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a tokenizer that is in DIR")
    parser.set_defaults(run=_train)


def require_free(output: Path, *, overwrite: bool) -> None:
    """Refuses to replace a tokenizer unasked.

    Raises:
        DataError: if ``output`` holds one.
    """
    if (output / "tokenizer.json").exists() and not overwrite:
        raise DataError(
            f"{output} already holds a tokenizer, and data tokenized with it would no longer fit: "
            "choose another --output, or give --overwrite."
        )


def summary(tokenizer: Tokenizer) -> str:
    """Size and fingerprint, and what is lost, in a line."""
    byte_level = tokenizer.token_id("<0x00>") is None
    lost = len(missing_bytes(tokenizer)) if byte_level else 0
    losses = f", {lost} bytes without a token" if lost else ""
    return f"{tokenizer.vocab_size:,} ids{losses}, fingerprint {tokenizer.fingerprint[:12]}"


def _train(arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    output: Path = arguments.output
    require_free(output, overwrite=arguments.overwrite)
    groups = [[file for entry in group for file in Input.parse(entry, arguments.key)] for group in arguments.input]
    texts = _sample(groups, arguments)
    tokenizer = train_tokenizer(
        texts,
        arguments.vocab_size,
        kind=TokenizerKind(arguments.kind),
        byte_alphabet=not arguments.no_byte_alphabet,
        trainer=Trainer(arguments.trainer),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.save(output)
    print(f"{output}: {summary(tokenizer)}, {time.monotonic() - started:.1f} s")


def _sample(groups: Sequence[Sequence[Input]], arguments: argparse.Namespace) -> Iterator[str]:
    """The texts to train on; with shares, the files are read once before, to count their characters."""
    if not arguments.balance and arguments.weights is None:
        if arguments.characters is not None:
            raise ConfigError("--characters needs --balance or --weights, which say from where to take them.")
        return (text for group in groups for text in _texts(group))
    if len(groups) < 2:
        raise ConfigError("--balance and --weights divide several groups: give each group an --input of its own.")
    weights = arguments.weights if arguments.weights is not None else [1.0] * len(groups)
    characters = None if arguments.characters is None else _count(arguments.characters)
    available = [sum(map(len, _texts(group))) for group in groups]
    wanted = plan_shares(available, weights, characters=characters)
    for group, held, share in zip(groups, available, wanted, strict=True):
        names = group[0].path if len(group) == 1 else f"{group[0].path} and {len(group) - 1} more"
        print(f"{names}: {share:,} of {held:,} characters ({share / held:.1%})")
    return (
        text
        for group, held, share in zip(groups, available, wanted, strict=True)
        for text in take_evenly(_texts(group), available=held, wanted=share)
    )


def _texts(group: Sequence[Input]) -> Iterator[str]:
    for file in group:
        yield from file.texts()


def _count(text: str) -> int:
    try:
        return parse_count(text)
    except ValueError as error:
        raise ConfigError(f"--characters: {error}.") from error
