"""Reads the Finnish Internet Parsebank (CoNLL-U) and what wikiextractor makes of Wikipedia.

Both mark where a document begins in lines of their own.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_poro.data.recipe_files import text_lines
from megatron_poro.errors import DataError

_CONLLU_DOCUMENT = "# <doc"
_CONLLU_PARAGRAPH = ("# <p>", "# <p ")
_CONLLU_TEXT = "# text = "

_WIKI_DOCUMENT = re.compile(r'<doc id="(?P<id>[^"]*)" url="(?P<url>[^"]*)" title="(?P<title>.*)">')
_WIKI_END = "</doc>"


def conllu_documents(path: Path) -> Iterator[Mapping[str, Any]]:
    """Records with ``text``: the sentences of a paragraph joined by a space, paragraphs an empty line apart.

    Raises:
        DataError: if a sentence comes before the first document.
    """
    paragraphs: list[list[str]] | None = None
    for number, line in enumerate(text_lines(path), start=1):
        if line.startswith(_CONLLU_DOCUMENT):
            if paragraphs is not None:
                yield _record(paragraphs)
            paragraphs = [[]]
        elif line.startswith(_CONLLU_PARAGRAPH) and paragraphs is not None:
            paragraphs.append([])
        elif line.startswith(_CONLLU_TEXT):
            if paragraphs is None:
                raise DataError(f"{path} line {number} is a sentence before the first {_CONLLU_DOCUMENT}.")
            paragraphs[-1].append(line.removeprefix(_CONLLU_TEXT))
    if paragraphs is not None:
        yield _record(paragraphs)


def wiki_documents(path: Path) -> Iterator[Mapping[str, Any]]:
    """Records with ``text``, ``title`` and ``url``.

    Raises:
        DataError: if a document does not end, or a line is outside any.
    """
    head: dict[str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(text_lines(path), start=1):
        if (found := _WIKI_DOCUMENT.fullmatch(line)) and head is None:
            head, lines = found.groupdict(), []
        elif line == _WIKI_END and head is not None:
            yield {**head, "text": "\n".join(lines)}
            head = None
        elif head is not None:
            lines.append(line)
        elif line.strip():
            raise DataError(f"{path} line {number} is outside any <doc>: {line[:80]!r}. Is it a file of wikiextractor?")
    if head is not None:
        raise DataError(f"{path} ends inside the document {head['title']!r}; make it again.")


def _record(paragraphs: list[list[str]]) -> Mapping[str, Any]:
    return {"text": "\n\n".join(" ".join(sentences) for sentences in paragraphs if sentences)}
