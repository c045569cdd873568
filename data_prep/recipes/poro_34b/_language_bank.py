"""Reads what the Language Bank of Finland distributes: Suomi24 (VRT), STT (NewsML) and Yle (JSON)."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_poro.data.recipe_files import text_lines
from megatron_poro.errors import DataError

from ._prose import markdown_text, paragraphs_of

_VRT_COLUMNS = ["word", "ref", "lemma", "lemmacomp", "pos", "msd", "dephead", "deprel", "spaces", "initid", "lex"]
_VRT_HEADER = re.compile(r"<!-- #vrt positional-attributes: (.*?) -->")
_VRT_SPACES = {"s": " ", "t": " ", "n": "\n", "r": "\n", "p": "|"}
_VRT_ENTITIES = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&"))  # the last one last

_YLE_TEXTS = {"heading", "text", "highlight"}
_YLE_PARTS = {"top-list": "items", "feature": "pages"}
BULLET = "•"


def vrt_texts(path: Path) -> Iterator[Mapping[str, Any]]:
    """Records with ``text``, one a message: its tokens with the white space that the tokenizer took away put back.

    The order of the columns is read from the file's header where it has one.

    Raises:
        DataError: if a token lacks a column, or a message does not end.
    """
    word, spaces = (_VRT_COLUMNS.index(name) for name in ("word", "spaces"))
    pieces: list[str] | None = None
    for number, line in enumerate(text_lines(path), start=1):
        if line.startswith("<"):
            if found := _VRT_HEADER.match(line):
                columns = found[1].split()
                word, spaces = columns.index("word"), columns.index("spaces")
            elif line.startswith("<text"):
                pieces = []
            elif line.startswith("</text") and pieces is not None:
                yield {"text": paragraphs_of(re.sub(" {2,}", " ", "".join(pieces)))}
                pieces = None
        elif line and pieces is not None:
            fields = line.split("\t")
            if len(fields) <= spaces:
                raise DataError(
                    f"{path} line {number} has {len(fields)} columns; white space is in column {spaces + 1}."
                )
            before, after = _vrt_spaces(fields[spaces])
            pieces += (before, _unescaped(fields[word]), after)
    if pieces is not None:
        raise DataError(f"{path} ends inside a message; copy it again.")


def newsml_article(path: Path) -> Iterator[Mapping[str, Any]]:
    """The one record of a NewsML file, with ``text``: headings and paragraphs, an empty line apart.

    Raises:
        DataError: if the file is not XML, or has no body.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is not XML ({error}); copy it again.") from error
    bodies = [element for element in root.iter() if _local_name(element) == "body"]
    if len(bodies) != 1:
        raise DataError(f"{path} has {len(bodies)} bodies, where an article of NewsML has one.")
    blocks = [" ".join("".join(element.itertext()).split()) for element in bodies[0]]
    yield {"text": "\n\n".join(block for block in blocks if block)}


def yle_articles(path: Path) -> Iterator[Mapping[str, Any]]:
    """The articles of a file as they are; ``yle_text`` renders one.

    Raises:
        DataError: if the file is not JSON with a list under ``data``.
    """
    try:
        articles = json.loads(path.read_bytes())["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a JSON object with articles under data ({error}).") from error
    yield from articles


def yle_text(article: Mapping[str, Any]) -> str:
    """Headings, paragraphs and lists of an article in their order, an empty line apart.

    Pictures, videos, pulled quotes, tables and whatever else is no running text is left out.

    Raises:
        KeyError: if an element lacks what its type needs.
    """
    return "\n\n".join(block for block in _yle_blocks(article) if block)


def _yle_blocks(article: Mapping[str, Any]) -> Iterator[str]:
    for element in article["content"]:
        kind = element["type"]
        if kind in _YLE_TEXTS:
            yield markdown_text(element["text"])
        elif kind == "bullet-list":
            yield "\n".join(f"{BULLET} {markdown_text(item)}" for item in element["items"])
        elif kind == "numbered-list":
            yield "\n".join(f"{number}. {markdown_text(item)}" for number, item in enumerate(element["items"], start=1))
        elif kind == "aside":
            yield from _yle_blocks(element)
        elif kind in _YLE_PARTS:
            parts: Sequence[Mapping[str, Any]] = element[_YLE_PARTS[kind]]
            for part in parts:
                yield from _yle_blocks(part)


def _vrt_spaces(value: str) -> tuple[str, str]:
    """White space before and after a token; a token without a note is followed by one space."""
    notes = dict(note.partition("=")[::2] for note in value.split("|") if "=" in note)
    after = "" if notes.get("SpaceAfter") == "No" else _spelt_out(notes.get("SpacesAfter", r"\s"))
    return _spelt_out(notes.get("SpacesBefore", "")), after


def _spelt_out(spaces: str) -> str:
    return re.sub(r"\\(.)|[^\S\n]", lambda found: _VRT_SPACES.get(found[1], "") if found[1] else " ", spaces)


def _unescaped(word: str) -> str:
    for entity, character in _VRT_ENTITIES:
        word = word.replace(entity, character)
    return word


def _local_name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
