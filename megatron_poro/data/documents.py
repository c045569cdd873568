"""Reads the texts of a corpus file: JSON lines (plain, gzip or zstandard) or parquet.

A file is read in chunks of about a megabyte whose JSON is not parsed yet, so that parsing, which costs more than
reading, can happen in another process; every chunk knows where in its file it lies, so that an error can say so.
"""

import gzip
import importlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_poro.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
"""Kinds of corpus files, told by the end of the name."""

CHUNK_BYTES = 1 << 20
_PARQUET_ROWS = 1024
_ZSTD_READ_BYTES = 1 << 17


@dataclass(frozen=True)
class Lines:
    """Consecutive lines of a JSON lines file, not parsed yet; ``first`` is the number of the first, from 1."""

    path: Path
    first: int
    lines: Sequence[bytes]

    def texts(self, key: str) -> list[str]:
        """The text under ``key`` of each line; lines of white space are passed over.

        Raises:
            DataError: naming file and line, if a line is not a JSON object with a text under ``key``.
        """
        numbered = enumerate(self.lines, start=self.first)
        return [_text_of_line(line, key, f"{self.path} line {number}") for number, line in numbered if line.strip()]

    def __str__(self) -> str:
        return f"{self.path} lines {self.first} to {self.first + len(self.lines) - 1}"


@dataclass(frozen=True)
class Rows:
    """Consecutive values of one parquet column; ``first`` is the number of the first row, from 1."""

    path: Path
    first: int
    values: Sequence[Any]

    def texts(self, key: str) -> list[str]:
        """The values of the column, which is called ``key``.

        Raises:
            DataError: naming file and row, if a value is not a text.
        """
        for number, value in enumerate(self.values, start=self.first):
            _require_text(value, key, f"{self.path} row {number}")
        return list(self.values)

    def __str__(self) -> str:
        return f"{self.path} rows {self.first} to {self.first + len(self.values) - 1}"


Chunk = Lines | Rows


def read_texts(path: Path, *, key: str = "text") -> Iterator[str]:
    """The texts of a corpus file, in order.

    Raises:
        DataError: if the file is missing, of no known kind, damaged, or has a record without a text under ``key``.
    """
    for chunk in read_chunks(path, key=key):
        yield from chunk.texts(key)


def read_chunks(path: Path, *, key: str = "text", chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """The records of a corpus file, in order, as chunks to be parsed by ``chunk.texts(key)``.

    Raises:
        DataError: if the file is missing, of no known kind, or damaged; bad records are found by ``texts``.
    """
    if not path.is_file():
        raise DataError(f"corpus file {path} does not exist.")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"corpus file {path} is of no known kind; its name must end in one of {', '.join(SUFFIXES)}.")
    if path.name.endswith(".parquet"):
        yield from _parquet_chunks(path, key)
        return
    lines: list[bytes] = []
    held, first = 0, 1
    for line in _lines(path):
        lines.append(line)
        held += len(line)
        if held >= chunk_bytes:
            yield Lines(path, first, lines)
            first += len(lines)
            lines, held = [], 0
    if lines:
        yield Lines(path, first, lines)


def _text_of_line(line: bytes, key: str, where: str) -> str:
    try:
        record = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON in UTF-8 ({error}).") from error
    if not isinstance(record, dict) or key not in record:
        has = f"an object with keys {sorted(record)}" if isinstance(record, dict) else f"a {type(record).__name__}"
        raise DataError(f"{where} has no key {key!r}; it is {has}. Name the right one with --key.")
    text = _require_text(record[key], key, where)
    if b"\\u" in line and not _encodable(text):  # only an escape can smuggle half a surrogate pair into a str
        raise DataError(f"{where} holds half of a surrogate pair, which is not text; replace it by U+FFFD.")
    return text


def _require_text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} has a {type(value).__name__} under {key!r}, where a text is needed.")
    return value


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file that may be compressed; a damaged or truncated one raises DataError."""
    number = 0
    try:
        with open(path, "rb") as file:
            for line in _decompressed_lines(path, file):
                number += 1
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {number} ({error}); copy or compress it again.") from error


def _decompressed_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    if path.name.endswith(".gz"):
        with gzip.GzipFile(fileobj=file) as unzipped:
            yield from unzipped
    elif path.name.endswith(".zst"):
        yield from _split_lines(_zstd_pieces(path, file))
    else:
        yield from file


def _zstd_pieces(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Decompressed pieces of all frames of a file.

    Frame by frame by hand: the library's file reader stops silently after the first frame and at a truncated one.
    """
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError as error:
        raise DataError(
            f"{path} is compressed with zstandard, which needs `pip install zstandard`; or compress it with gzip."
        ) from error
    frame = None
    while compressed := file.read(_ZSTD_READ_BYTES):
        while compressed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(compressed)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            compressed = frame.unused_data
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the file ends inside a compressed frame")


def _split_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _parquet_chunks(path: Path, key: str) -> Iterator[Rows]:
    parquet = importlib.import_module("pyarrow.parquet")
    arrow = importlib.import_module("pyarrow")
    first = 1
    try:
        with parquet.ParquetFile(path) as file:
            if key not in file.schema_arrow.names:
                raise DataError(f"{path} has no column {key!r}; it has {file.schema_arrow.names}. Set --key.")
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[key]):
                yield Rows(path, first, batch.column(0).to_pylist())
                first += len(batch)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read after row {first - 1} ({error}); copy it again.") from error
