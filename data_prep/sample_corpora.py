"""Builds the sample corpora: real text for each source of Poro's mixture, offline, in seconds, the same every time.

Run as ``python -m data_prep.sample_corpora --output work/smoke/corpora``. Writes ``<source>.train.jsonl`` and
``<source>.validation.jsonl`` for each source, then ``manifest.json`` with sizes, origins and licences. The text from
the standard library differs between Python versions; with one installation every run writes the same bytes.
"""

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.recipes import starcoder
from data_prep.recipes.poro_34b.tatoeba import PAPER_SEPARATOR
from data_prep.recipes.sample import own_texts, standard_library
from data_prep.recipes.sample.documents import Document, Source, split
from megatron_poro.data.durable import durable_write
from megatron_poro.errors import PoroError

MANIFEST = "manifest.json"
SEPARATORS = {"space": PAPER_SEPARATOR, "newline": "\n"}

_PYTHON_LICENCE = "PSF License Agreement (Python-2.0)"
_OWN_LICENCE = "Apache-2.0, as this project"


def main(argv: Sequence[str] | None = None) -> int:
    """Builds the corpora; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.sample_corpora", description="Build the sample corpora.")
    parser.add_argument("--output", type=Path, default=Path("work/smoke/corpora"), metavar="DIR")
    parser.add_argument(
        "--tatoeba-separator",
        choices=SEPARATORS,
        default="space",
        help="what stands between a sentence and the assistant's token (default: space, as in the paper)",
    )
    arguments = parser.parse_args(argv)
    try:
        manifest = build(arguments.output, separator=SEPARATORS[arguments.tatoeba_separator])
    except PoroError as error:
        print(f"sample_corpora: {error}", file=sys.stderr)
        return 2
    for name, entry in manifest["sources"].items():
        train, validation = entry["train"], entry["validation"]
        print(
            f"{name:<14} train {train['documents']:>5,} documents {train['characters']:>9,} characters   "
            f"validation {validation['documents']:>4,} documents {validation['characters']:>8,} characters"
        )
    print(f"written to {arguments.output}")
    return 0


def sources(*, separator: str = PAPER_SEPARATOR) -> list[Source]:
    """The six sources in the order of Poro's mixture."""
    library = f"standard library of Python {platform.python_version()}"
    return [
        Source(
            name="slimpajama",
            key="text",
            origin=f"{library}: docstrings of modules, short chapters of the language reference",
            licence=_PYTHON_LICENCE,
            documents=standard_library.articles,
        ),
        Source(
            name="finnish",
            key="text",
            origin="written for this project: data_prep/recipes/sample/finnish",
            licence=_OWN_LICENCE,
            documents=own_texts.finnish_texts,
        ),
        Source(
            name="tatoeba_en_fi",
            key="text",
            origin="written for this project: data_prep/recipes/sample/sentence_pairs.tsv",
            licence=_OWN_LICENCE,
            documents=partial(own_texts.translations_into_finnish, separator),
        ),
        Source(
            name="tatoeba_fi_en",
            key="text",
            origin="written for this project: data_prep/recipes/sample/sentence_pairs.tsv",
            licence=_OWN_LICENCE,
            documents=partial(own_texts.translations_into_english, separator),
        ),
        Source(
            name="starcoder",
            key=starcoder.KEY,
            origin=f"{library}: sources of modules that slimpajama does not use",
            licence=_PYTHON_LICENCE,
            documents=standard_library.code_files,
        ),
        Source(
            name="gutenberg",
            key="text",
            origin=f"{library}: long chapters of the language reference, licence text",
            licence=_PYTHON_LICENCE,
            documents=standard_library.books,
        ),
    ]


def build(output: Path, *, separator: str = PAPER_SEPARATOR) -> dict[str, Any]:
    """Writes all corpora and the manifest into ``output``; returns the manifest.

    Each file appears whole or not at all, the manifest last.

    Raises:
        DataError: if this Python has no sources of its standard library, or the disk refuses.
    """
    entries: dict[str, Any] = {}
    for source in sources(separator=separator):
        parts = split(source.documents())
        entries[source.name] = {"key": source.key, "origin": source.origin, "licence": source.licence}
        for part, documents in parts._asdict().items():
            path = output / f"{source.name}.{part}.jsonl"
            entries[source.name][part] = _write_corpus(path, documents, key=source.key)
    manifest = {"python": platform.python_version(), "sources": entries}
    with durable_write(output / MANIFEST) as file:
        file.write((json.dumps(manifest, ensure_ascii=False, indent=2) + "\n").encode())
    return manifest


def _write_corpus(path: Path, documents: Sequence[Document], *, key: str) -> dict[str, Any]:
    """Writes one JSON line a document; returns the file's entry in the manifest."""
    lines = [json.dumps({key: document.text}, ensure_ascii=False) + "\n" for document in documents]
    content = "".join(lines).encode()
    with durable_write(path) as file:
        file.write(content)
    return {
        "file": path.name,
        "documents": len(documents),
        "characters": sum(len(document.text) for document in documents),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


if __name__ == "__main__":
    sys.exit(main())
