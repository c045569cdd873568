"""Corpus files as chunks of about a megabyte: JSON lines (plain, gzip or zstandard) and parquet.

A chunk is cheap to make and to send to another process: of a plain file it is a range of bytes, of a compressed one the
bytes of whole lines, of parquet the rows as arrow has them. What the rows and lines mean is not looked at here.

A part of a file can be asked for by two offsets, so that several machines can share a file without speaking to each
other: parts that meet end to end hold each record exactly once.
"""

import gzip
import importlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from megatron_poro.data.arrow import arrow
from megatron_poro.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
"""Kinds of corpus files, told by the end of the name."""

CHUNK_BYTES = 1 << 20
_PARQUET_ROWS = 1024
_READ_BYTES = 1 << 18
_ZSTD_WINDOW = 1 << 31  # archives of Reddit are made with it; the library refuses more than 128 MiB unasked


class Chunk(Protocol):
    """Consecutive records of one file, not parsed yet. Sent to other processes: picklable."""

    @property
    def end(self) -> int:
        """Offset in the file as it is on disk that has been come to, roughly; for progress."""

    def records(self) -> Iterator[Any]:
        """The bytes of each line, or each row as a dictionary.

        Raises:
            DataError: if the file is damaged here.
        """

    def place(self, position: int) -> str:
        """File and line (or row) of the record at ``position`` of ``records``, from 0, for messages."""


@dataclass
class FileRange:
    """The lines of a plain file whose first byte lies in ``begin <= offset < end``; read by who parses them."""

    path: Path
    begin: int
    end: int

    def records(self) -> Iterator[bytes]:
        """Lines, without their ends.

        Raises:
            DataError: if the file cannot be read, or has become shorter.
        """
        try:
            with open(self.path, "rb") as file:
                data = self._whole_lines(file)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read at byte {self.begin} ({error}).") from error
        yield from _split(data)

    def place(self, position: int) -> str:
        """File and line."""
        return f"{self.path} line {self._lines_before + position + 1}"

    @cached_property
    def _lines_before(self) -> int:
        """Counted only when a message needs it, because it takes reading the file up to here."""
        with open(self.path, "rb") as file:
            start = self._seek(file)
            file.seek(0)
            blocks = iter(lambda: file.read(min(_READ_BYTES, start - file.tell())), b"")
            return sum(block.count(b"\n") for block in blocks)

    def _seek(self, file: BinaryIO) -> int:
        """Goes to the first line that begins here."""
        if self.begin:
            file.seek(self.begin - 1)
            file.readline()  # the line of the byte before: only its end, if a line begins at ``begin``
        return file.tell()

    def _whole_lines(self, file: BinaryIO) -> bytes:
        wanted = self.end - self._seek(file)
        if wanted <= 0:
            return b""
        data = file.read(wanted)
        if len(data) < wanted:
            raise DataError(f"{self.path} has become shorter than {self.end} bytes while it was read.")
        return data if data.endswith(b"\n") else data + file.readline()

    def __str__(self) -> str:
        return f"{self.path} bytes {self.begin} to {self.end}"


@dataclass(frozen=True)
class Lines:
    """Whole lines of a compressed file; ``first`` is the number of the first, from 1."""

    path: Path
    first: int
    data: bytes
    end: int

    def records(self) -> Iterator[bytes]:
        """Lines, without their ends."""
        return iter(_split(self.data))

    def place(self, position: int) -> str:
        """File and line."""
        return f"{self.path} line {self.first + position}"

    def __str__(self) -> str:
        return f"{self.path} from line {self.first}"


@dataclass(frozen=True)
class Rows:
    """Rows of a parquet file in arrow's own form; ``first`` is the number of the first, from 1."""

    path: Path
    first: int
    batch: bytes
    end: int

    def records(self) -> Iterator[dict[str, Any]]:
        """Rows as dictionaries."""
        with arrow("pyarrow.ipc").open_stream(self.batch) as stream:
            for batch in stream:
                yield from batch.to_pylist()

    def place(self, position: int) -> str:
        """File and row."""
        return f"{self.path} row {self.first + position}"

    def __str__(self) -> str:
        return f"{self.path} from row {self.first}"


def chunks_of_file(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    begin: int = 0,
    end: int | None = None,
) -> Iterator[Chunk]:
    """The records of a corpus file, in order, as chunks.

    Args:
        path: a file whose name ends in one of ``SUFFIXES``; any other file is taken as plain lines, or as compressed
            ones if its name ends in ``.gz`` or ``.zst``.
        columns: the parquet columns wanted; None is all of them.
        chunk_bytes: about the size of a chunk.
        begin: offset in the file as it is on disk from which records are wanted. A line of a plain file and a row
            group of parquet belong to the part in which they begin; a compressed file is whole in the part from 0.
        end: offset up to which; None is the end of the file.

    Raises:
        DataError: if the file is missing or damaged, or lacks a column.
    """
    size = file_size(path)
    end = size if end is None else min(end, size)
    if path.name.endswith(".parquet"):
        yield from _parquet_chunks(path, columns, chunk_bytes, begin, end)
    elif path.name.endswith((".gz", ".zst")):
        if begin == 0:
            yield from _compressed_chunks(path, chunk_bytes)
    else:
        yield from (FileRange(path, start, min(start + chunk_bytes, end)) for start in range(begin, end, chunk_bytes))


def require_known_kind(path: Path) -> None:
    """Refuses a file that is missing, or whose name says that it is no corpus file.

    Raises:
        DataError: saying which.
    """
    file_size(path)
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"corpus file {path} is of no known kind; its name must end in one of {', '.join(SUFFIXES)}.")


def file_size(path: Path) -> int:
    """Bytes on the disk.

    Raises:
        DataError: if it is not a file.
    """
    if not path.is_file():
        raise DataError(f"corpus file {path} does not exist.")
    return path.stat().st_size


def _split(data: bytes) -> list[bytes]:
    """Lines without their ends; bytes.splitlines would also cut at other characters."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _compressed_chunks(path: Path, chunk_bytes: int) -> Iterator[Lines]:
    first, rest, held = 1, b"", list[bytes]()
    size = 0
    try:
        with open(path, "rb") as file:
            for piece in _decompressed(path, file):
                held.append(piece)
                size += len(piece)
                if size < chunk_bytes or b"\n" not in piece:
                    continue
                whole, _, rest = b"".join(held).rpartition(b"\n")
                yield Lines(path, first, whole + b"\n", file.tell())
                first += whole.count(b"\n") + 1
                held, size = [rest], len(rest)
    except (OSError, EOFError, zlib.error) as error:
        line = first + b"".join(held).count(b"\n") - 1
        raise DataError(f"{path} cannot be read after line {line} ({error}); copy or compress it again.") from error
    if any(held):
        yield Lines(path, first, b"".join(held), file_size(path))


def _decompressed(path: Path, file: BinaryIO) -> Iterator[bytes]:
    if path.name.endswith(".gz"):
        with gzip.GzipFile(fileobj=file) as unzipped:
            yield from iter(lambda: unzipped.read(_READ_BYTES), b"")
    else:
        yield from _zstd_pieces(path, file)


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
    while compressed := file.read(_READ_BYTES >> 1):
        while compressed:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
            try:
                yield frame.decompress(compressed)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            compressed = frame.unused_data
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the file ends inside a compressed frame")


def _parquet_chunks(
    path: Path, columns: Sequence[str] | None, chunk_bytes: int, begin: int, end: int
) -> Iterator[Rows]:
    parquet = arrow("pyarrow.parquet")
    size = file_size(path)
    first = 1
    try:
        with parquet.ParquetFile(path) as file:
            missing = [column for column in columns or () if column not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path} has no column {missing[0]!r}; it has {file.schema_arrow.names}. Set --key.")
            groups = file.metadata.num_row_groups
            for group in range(groups):
                rows = file.metadata.row_group(group).num_rows
                if begin <= size * group // groups < end:
                    mean = max(1, file.metadata.row_group(group).total_byte_size // max(rows, 1))
                    at_once = max(1, min(_PARQUET_ROWS, chunk_bytes // mean))
                    start = first
                    for batch in file.iter_batches(
                        batch_size=at_once, row_groups=[group], columns=None if columns is None else list(columns)
                    ):
                        yield Rows(path, start, _ipc(batch), size * group // groups)
                        start += len(batch)
                first += rows
    except (OSError, arrow("pyarrow").ArrowException) as error:
        raise DataError(f"{path} cannot be read after row {first - 1} ({error}); copy it again.") from error


def _ipc(batch: Any) -> bytes:
    sink = arrow("pyarrow").BufferOutputStream()
    with arrow("pyarrow.ipc").new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content
