"""From a corpus file to its documents, in two halves: cutting the file into chunks, and parsing a chunk.

The first half costs little and runs in one process; the second runs where there is time for it, in many. A chunk of a
plain file is only a range of bytes, which the process that parses it reads itself. Nothing is lost without a word: a
record becomes one or more texts, or a ``Dropped`` with the reason, or a ``Malformed`` with file and line.

A source with rules of its own (which records to leave out, how to build the text) is a ``DocumentReader``: usually a
``RecordReader`` around a function of one record, otherwise a ``FileReader`` around a function of a file. A corpus is a
list of ``CorpusFile``, each with its reader, for ``tokenizing.tokenize_corpus``.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_poro.data.corpus_files import CHUNK_BYTES, Chunk, chunks_of_file, require_known_kind
from megatron_poro.errors import DataError

MALFORMED = "malformed"
"""The name under which records that cannot be read are counted."""

HALF_SURROGATE = "holds half of a surrogate pair, which is not text; replace it by U+FFFD."


@dataclass(frozen=True)
class Dropped:
    """A record that is left out by a rule; counted under ``reason``, a word or two such as ``book``."""

    reason: str


@dataclass(frozen=True)
class Malformed:
    """A record that cannot be read; ``problem`` is a sentence that names file and line."""

    problem: str


Extract = Callable[[Mapping[str, Any]], Iterable["str | Dropped"]]
"""The rule of a source: the texts of one record, in order, or why it has none.

It raises ``KeyError``, ``TypeError`` or ``ValueError`` for a record that is not of the source's schema.
"""


class DocumentReader(Protocol):
    """How the files of one source become documents. Sent to other processes: must be picklable."""

    @property
    def name(self) -> str:
        """What it does, for the manifest: equal names promise equal documents."""

    def chunks(
        self, path: Path, *, chunk_bytes: int = CHUNK_BYTES, begin: int = 0, end: int | None = None
    ) -> Iterator[Chunk]:
        """Consecutive chunks of the file, or of the part of it between two offsets (see ``chunks_of_file``)."""

    def documents(self, chunk: Chunk) -> Iterator[str | Dropped | Malformed]:
        """Parses one chunk."""


@dataclass(frozen=True)
class RecordReader:
    """Reads records (JSON lines, plain or compressed, or rows of parquet) and applies a source's rule to each.

    Attributes:
        name: what it does, for the manifest.
        extract: the rule; a function at the top level of a module, or a picklable object.
        columns: the parquet columns that the rule needs; None reads all.
    """

    name: str
    extract: Extract
    columns: tuple[str, ...] | None = None

    def chunks(
        self, path: Path, *, chunk_bytes: int = CHUNK_BYTES, begin: int = 0, end: int | None = None
    ) -> Iterator[Chunk]:
        """Consecutive chunks of the file or of a part of it."""
        require_known_kind(path)
        return chunks_of_file(path, columns=self.columns, chunk_bytes=chunk_bytes, begin=begin, end=end)

    def documents(self, chunk: Chunk) -> Iterator[str | Dropped | Malformed]:
        """Parses one chunk; lines of white space are passed over."""
        for position, record in enumerate(chunk.records()):
            if isinstance(record, bytes):
                if not record.strip():
                    continue
                try:
                    record = json.loads(record.decode("utf-8"))
                except (ValueError, RecursionError) as error:
                    yield Malformed(f"{chunk.place(position)} is not valid JSON in UTF-8 ({error}).")
                    continue
            yield from self._documents_of(record, chunk, position)

    def _documents_of(self, record: Any, chunk: Chunk, position: int) -> Iterator[str | Dropped | Malformed]:
        try:
            if not isinstance(record, dict):
                raise ValueError(f"has no keys; it is a {type(record).__name__}, where a record is needed.")
            found = list(self.extract(record))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            yield Malformed(f"{chunk.place(position)} {_what_is_wrong(error)}")
            return
        for text in found:
            if isinstance(text, str) and not _encodable(text):  # an escape can smuggle half a pair into a str
                yield Malformed(f"{chunk.place(position)} {HALF_SURROGATE}")
            else:
                yield text


@dataclass(frozen=True)
class FileReader:
    """Reads files that are not records, by a function of the whole file; it runs in one process, encoding in many.

    Attributes:
        name: what it does, for the manifest.
        read: the documents of a file, in order.
    """

    name: str
    read: Callable[[Path], Iterator[str | Dropped | Malformed]]

    def chunks(
        self, path: Path, *, chunk_bytes: int = CHUNK_BYTES, begin: int = 0, end: int | None = None
    ) -> Iterator[Chunk]:
        """Consecutive documents of the file, all of which belong to the part that begins at 0."""
        first, held, size = 1, list[str | Dropped | Malformed](), 0
        for document in self.read(path) if begin == 0 else ():
            held.append(document)
            size += len(document) if isinstance(document, str) else 1
            if size >= chunk_bytes:
                yield Documents(path, first, held)
                first, held, size = first + len(held), [], 0
        if held:
            yield Documents(path, first, held)

    def documents(self, chunk: Chunk) -> Iterator[str | Dropped | Malformed]:
        """They are read already."""
        for position, document in enumerate(chunk.records()):
            broken = isinstance(document, str) and not _encodable(document)
            yield Malformed(f"{chunk.place(position)} {HALF_SURROGATE}") if broken else document


@dataclass(frozen=True)
class Documents:
    """Documents that a ``FileReader`` has read; ``first`` is the number of the first in its file, from 1."""

    path: Path
    first: int
    read: Sequence[str | Dropped | Malformed]
    end: int = 0

    def records(self) -> Iterator[str | Dropped | Malformed]:
        """The documents."""
        return iter(self.read)

    def place(self, position: int) -> str:
        """File and number."""
        return f"{self.path} document {self.first + position}"

    def __str__(self) -> str:
        return f"{self.path} from document {self.first}"


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus and how it is read."""

    path: Path
    reader: DocumentReader


@dataclass(frozen=True)
class TextUnderKey:
    """The rule of a plain corpus: the text of a record is under ``key``."""

    key: str

    def __call__(self, record: Mapping[str, Any]) -> tuple[str]:
        """The text.

        Raises:
            ValueError: if the record has no such key, or no text there.
        """
        if self.key not in record:
            raise ValueError(
                f"has no key {self.key!r}; it is an object with keys {sorted(record)}. Name the right one with --key."
            )
        text = record[self.key]
        if not isinstance(text, str):
            raise ValueError(f"has a {type(text).__name__} under {self.key!r}, where a text is needed.")
        return (text,)


def reader_of_key(key: str = "text") -> RecordReader:
    """Reads files whose records have their text under ``key``."""
    return RecordReader(name=f"key {key}", extract=TextUnderKey(key), columns=(key,))


def read_documents(path: Path, reader: DocumentReader) -> Iterator[str | Dropped | Malformed]:
    """Everything in one file, in order, in this process.

    Raises:
        DataError: if the file is missing, of no known kind, or damaged.
    """
    for chunk in reader.chunks(path):
        yield from reader.documents(chunk)


def read_texts(path: Path, *, key: str = "text") -> Iterator[str]:
    """The texts of a corpus file, in order.

    Raises:
        DataError: if the file is missing, of no known kind, damaged, or has a record without a text under ``key``.
    """
    for document in read_documents(path, reader_of_key(key)):
        if isinstance(document, Malformed):
            raise DataError(document.problem)
        if isinstance(document, str):
            yield document


def _what_is_wrong(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"has no key {error.args[0]!r}." if error.args else "lacks a key."
    return str(error) or f"is not of the source's schema ({type(error).__name__})."


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
