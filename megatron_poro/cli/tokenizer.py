"""``poro tokenizer``: train a tokenizer, import one, look into one, compare some.

Imports neither torch nor transformers.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_poro.cli.tokenizer_train import Input, add_inputs, add_train, require_free, summary
from megatron_poro.errors import PoroError
from megatron_poro.tokenizer.bytes import missing_bytes
from megatron_poro.tokenizer.fertility import Fertility, measure
from megatron_poro.tokenizer.tokenizer import Tokenizer, load_backend


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
    parser = argparse.ArgumentParser(
        prog="poro tokenizer", description="Train a tokenizer, import one, look into one, compare some."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    add_train(verbs)

    importing = verbs.add_parser("import", help="SentencePiece .model (BPE, byte fallback) -> a tokenizer folder")
    importing.add_argument("model", type=Path, metavar="FILE.model")
    importing.add_argument("--output", type=Path, required=True, metavar="DIR")
    importing.add_argument("--overwrite", action="store_true", help="replace a tokenizer that is in DIR")
    importing.set_defaults(run=_import)

    inspect = verbs.add_parser("inspect", help="print a tokenizer's numbers, and the tokens of a text")
    inspect.add_argument("folder", type=Path, metavar="DIR")
    inspect.add_argument("text", nargs="?", metavar="TEXT", help="encode this and print each token")
    inspect.set_defaults(run=_inspect)

    fertility = verbs.add_parser("fertility", help="tokens per word and per byte of some texts, for some tokenizers")
    fertility.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="any folder with a tokenizer.json")
    add_inputs(fertility)
    fertility.add_argument("--json", action="store_true", help="print a JSON list instead of the table")
    fertility.set_defaults(run=_fertility)
    return parser


def _import(arguments: argparse.Namespace) -> None:
    from megatron_poro.tokenizer.sentencepiece_import import import_sentencepiece

    require_free(arguments.output, overwrite=arguments.overwrite)
    tokenizer = import_sentencepiece(arguments.model)
    tokenizer.save(arguments.output)
    print(f"{arguments.output}: {summary(tokenizer)}, ids as in {arguments.model}")


def _inspect(arguments: argparse.Namespace) -> None:
    tokenizer = Tokenizer.load(arguments.folder)
    print(f"tokenizer    {arguments.folder}")
    print(f"ids          {tokenizer.vocab_size:,}")
    roles = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "unk": tokenizer.unk_id}
    print(f"special      {', '.join(f'{role} {token}' for role, token in roles.items())}")
    print(f"lost bytes   {_lost_bytes(tokenizer)}")
    print(f"fingerprint  {tokenizer.fingerprint}")
    if arguments.text is not None:
        _print_tokens(tokenizer, arguments.text)


def _lost_bytes(tokenizer: Tokenizer) -> str:
    if tokenizer.token_id("<0x00>") is not None:
        return "none: characters without a token become bytes"
    lost = missing_bytes(tokenizer)
    return ", ".join(f"{byte:02x}" for byte in lost) if lost else "none: any text survives"


def _print_tokens(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    print()
    for token in ids:
        print(f"{token:>8}  {tokenizer.decode([token])!r}")
    words = len(text.split())
    fertility = f", {len(ids) / words:.2f} per word" if words else ""
    kept = "" if tokenizer.decode(ids) == text else ", and decoding them does NOT give the text back"
    print(f"{len(ids)} tokens{fertility}{kept}")


def _fertility(arguments: argparse.Namespace) -> None:
    backends = [load_backend(folder) for folder in arguments.folders]
    files = [file for group in arguments.input for entry in group for file in Input.parse(entry, arguments.key)]
    rows: list[tuple[str, Path, int, Fertility]] = []
    totals = [Fertility() for _ in backends]
    for file in files:
        found = measure(backends, file.texts())
        totals = [total + one for total, one in zip(totals, found, strict=True)]
        for folder, backend, one in zip(arguments.folders, backends, found, strict=True):
            rows.append((str(file.path), folder, backend.get_vocab_size(), one))
    if len(files) > 1:
        for folder, backend, total in zip(arguments.folders, backends, totals, strict=True):
            rows.append(("all", folder, backend.get_vocab_size(), total))
    if arguments.json:
        print(json.dumps([_as_json(*row) for row in rows], indent=2))
    else:
        _print_fertility(rows)


def _as_json(name: str, folder: Path, ids: int, found: Fertility) -> dict[str, object]:
    ratios = {
        "tokens_per_word": found.per_word if found.words else None,
        "tokens_per_byte": found.per_byte if found.bytes else None,
    }
    return {"input": name, "tokenizer": str(folder), "ids": ids, **dataclasses.asdict(found), **ratios}


def _print_fertility(rows: Sequence[tuple[str, Path, int, Fertility]]) -> None:
    wide = max(len("input"), *(len(name) for name, *_ in rows))
    folder_wide = max(len("tokenizer"), *(len(str(folder)) for _, folder, *_ in rows))
    print(
        f"{'input':{wide}}  {'tokenizer':{folder_wide}}  {'ids':>7}  {'documents':>10}  {'words':>13}  {'bytes':>15}  "
        f"{'tokens':>14}  {'per word':>8}  {'per byte':>8}"
    )
    for name, folder, ids, found in rows:
        print(
            f"{name:{wide}}  {folder!s:{folder_wide}}  {ids:>7,}  {found.documents:>10,}  {found.words:>13,}  "
            f"{found.bytes:>15,}  {found.tokens:>14,}  {found.per_word:>8.3f}  {found.per_byte:>8.4f}"
        )
