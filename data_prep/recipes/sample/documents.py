"""What a sample source is made of, and how it is divided into training and validation."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

VALIDATION_SHARE = 0.1


class Document(NamedTuple):
    """One text.

    Attributes:
        text: the text.
        group: what it was cut from; texts of one group are never divided between training and validation.
    """

    text: str
    group: str


@dataclass(frozen=True)
class Source:
    """One corpus of the sample mix.

    Attributes:
        name: as in the configs.
        key: name of the text in a record.
        origin: where the text is from, in words.
        licence: under what the text may be used.
        documents: makes them, in a fixed order.
    """

    name: str
    key: str
    origin: str
    licence: str
    documents: Callable[[], Sequence[Document]]


class Split(NamedTuple):
    """The two parts of a source."""

    train: list[Document]
    validation: list[Document]


def split(documents: Sequence[Document], *, validation_share: float = VALIDATION_SHARE) -> Split:
    """Divides by group: those with the smallest hashes are the validation part, at least one of them.

    Two sources with the same groups are divided alike, so a sentence pair is on one side in both directions.
    """
    groups = sorted({document.group for document in documents}, key=hash_of)
    held_out = set(groups[: max(1, round(len(groups) * validation_share))])
    return Split(
        train=[document for document in documents if document.group not in held_out],
        validation=[document for document in documents if document.group in held_out],
    )


def hash_of(text: str) -> str:
    """A fixed pseudo-random rank for a text, the same in every process and on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


def within_budget(documents: Iterable[Document], characters: int) -> list[Document]:
    """The first documents that hold no more than ``characters`` in all."""
    kept: list[Document] = []
    held = 0
    for document in documents:
        held += len(document.text)
        if held > characters:
            break
        kept.append(document)
    return kept


def cut(text: str, *, separator: str, characters: int) -> list[str]:
    """Cuts a long text at separators into pieces of at most ``characters``; a part without a separator stays whole."""
    pieces: list[str] = []
    for part in text.split(separator):
        if pieces and len(pieces[-1]) + len(separator) + len(part) <= characters:
            pieces[-1] += separator + part
        else:
            pieces.append(part)
    return pieces
