"""The bytes of an indexed dataset: Megatron's MMIDIDX version 1, all little-endian.

``<prefix>.bin`` is the token ids of all documents one after the other and nothing else. ``<prefix>.idx`` is

    offset     bytes  content
    0          9      ``MMIDIDX`` and two zero bytes
    9          8      uint64, version, 1
    17         1      uint8, code of the token type
    18         8      uint64, number of sequences N
    26         8      uint64, number of document entries D
    34         4 N    int32, tokens of each sequence
    34 +  4 N  8 N    int64, where each sequence begins in the .bin, in bytes
    34 + 12 N  8 D    int64, 0 and then, after each document, the number of sequences so far

One sequence is one document here (D = N + 1), as in every corpus that is made for pretraining; files whose documents
hold several sequences are read too, each sequence as a document of its own, as Megatron's own GPT dataset does.

Source: NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py; the format of GPT-NeoX and Megatron-DeepSpeed.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.durable import DurableFile
from megatron_poro.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
VERSION_OFFSET, TYPE_OFFSET, ENTRIES_OFFSET = 9, 17, 26

TOKEN_TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
"""Integer types by code. 6 and 7 are floating point (which is which differs between Megatron versions): not tokens."""

LARGEST_UINT16_VOCABULARY = 65500
"""Vocabularies below this are stored in two bytes per token, others in four; Megatron's rule."""

_BLOCK = 1 << 20


class Header(NamedTuple):
    """What the first 34 bytes of an .idx say."""

    token_type: np.dtype[Any]
    num_sequences: int
    num_document_entries: int

    @property
    def index_bytes(self) -> int:
        """Size that the whole .idx must have."""
        return HEADER.size + 12 * self.num_sequences + 8 * self.num_document_entries


def bin_path(prefix: Path) -> Path:
    """The token file of a dataset."""
    return Path(f"{prefix}.bin")  # not with_suffix: prefixes such as eval.en-fi hold dots


def idx_path(prefix: Path) -> Path:
    """The index file of a dataset."""
    return Path(f"{prefix}.idx")


def token_type(vocab_size: int) -> np.dtype[Any]:
    """The type tokens of a vocabulary are stored in: uint16 below 65500 entries, else int32."""
    return TOKEN_TYPES[8] if vocab_size < LARGEST_UINT16_VOCABULARY else TOKEN_TYPES[4]


def read_header(path: Path, start: bytes) -> Header:
    """Decodes the first bytes of the .idx ``path``.

    Raises:
        DataError: if they are not those of an MMIDIDX version 1 file that holds integers.
    """
    if len(start) < HEADER.size:
        raise DataError(
            f"{path} has {len(start)} bytes, an index has at least {HEADER.size} (the header from byte 0 on): copy or "
            "make it again."
        )
    magic, version, code, num_sequences, num_document_entries = HEADER.unpack_from(start)
    if magic != MAGIC:
        raise DataError(
            f"{path} begins with {magic!r} at byte 0 instead of {MAGIC!r}: it is not a memory-mapped Megatron index. "
            "Make the dataset with `poro data tokenize`, or with Megatron's preprocess_data.py --dataset-impl mmap."
        )
    if version != VERSION:
        raise DataError(
            f"{path} is version {version} of the index format (byte {VERSION_OFFSET}), this program reads version "
            f"{VERSION}."
        )
    if code not in TOKEN_TYPES:
        kind = "floating point numbers" if code in (6, 7) else "an unknown type"
        raise DataError(
            f"{path} says that its .bin holds {kind} (code {code}, byte {TYPE_OFFSET}); tokens are "
            f"integers {list(TOKEN_TYPES)}."
        )
    return Header(TOKEN_TYPES[code], num_sequences, num_document_entries)


def damage(path: Path, offset: int, what: str) -> DataError:
    """The error for a file whose content contradicts itself at a byte."""
    return DataError(f"{path}, byte {offset}: {what}. The file is damaged: copy or make the dataset again.")


class Index:
    """An .idx as arrays: views of its bytes, not copies.

    Attributes:
        header: its first 34 bytes.
        sizes: int32 ``[num_sequences]``, tokens of each sequence.
        begins: int64 ``[num_sequences]``, where each sequence begins in the .bin, in bytes.
        document_entries: int64 ``[num_document_entries]``, sequences before and after each document.
        num_tokens: tokens in the .bin, from the last sequence.
        digest: short fingerprint that the opener worked out.

    Raises:
        DataError: if the first or last entry of an array contradicts the header.
    """

    def __init__(self, path: Path, header: Header, content: memoryview, *, digest: str) -> None:
        """Views ``content``, which must be as long as ``header`` says."""
        self._path, self.header, self.digest = path, header, digest
        count, entries = header.num_sequences, header.num_document_entries
        if entries < 1:
            raise damage(path, ENTRIES_OFFSET, "there are 0 document entries, and there must be a leading 0")
        self._begins_at = HEADER.size + 4 * count
        self._entries_at = HEADER.size + 12 * count
        self.sizes: NDArray[np.int32] = np.frombuffer(content, "<i4", count, HEADER.size)
        self.begins: NDArray[np.int64] = np.frombuffer(content, "<i8", count, self._begins_at)
        self.document_entries: NDArray[np.int64] = np.frombuffer(content, "<i8", entries, self._entries_at)
        self._check_ends()
        itemsize = header.token_type.itemsize
        self.num_tokens = int(self.begins[-1]) // itemsize + int(self.sizes[-1]) if count else 0

    def begin_offset(self, sequence: int) -> int:
        """Byte of the .idx that says where a sequence begins."""
        return self._begins_at + 8 * sequence

    def misplaced(self, sequence: int) -> DataError:
        """The error for a sequence that does not end where the next one begins."""
        begin, size, itemsize = int(self.begins[sequence]), int(self.sizes[sequence]), self.header.token_type.itemsize
        is_last = sequence + 1 == len(self.begins)
        following = "the .bin ends" if is_last else f"document {sequence + 1} begins"
        at = self.num_tokens * itemsize if is_last else int(self.begins[sequence + 1])
        return damage(
            self._path,
            self.begin_offset(sequence),
            f"document {sequence} begins at byte {begin} of the .bin and has {size} tokens of {itemsize} bytes (byte "
            f"{HEADER.size + 4 * sequence}), but {following} at {at}",
        )

    def check(self) -> None:
        """Compares every sequence with the next and every document entry with the one before, in bounded memory.

        Raises:
            DataError: at the first contradiction.
        """
        count, itemsize = len(self.sizes), self.header.token_type.itemsize
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            sizes, begins = self.sizes[start:stop], self.begins[start:stop]
            following = np.full(stop - start, self.num_tokens * itemsize, dtype=np.int64)
            next_begins = self.begins[start + 1 : stop + 1]  # one fewer in the last block
            following[: len(next_begins)] = next_begins
            # differences of any two int64 are right modulo 2**64, so no damage can hide behind an overflow
            wrong = np.flatnonzero((following - begins != sizes.astype(np.int64) * itemsize) | (sizes < 0))
            if len(wrong):
                raise self.misplaced(start + int(wrong[0]))
        # one document per sequence leaves no choice; else documents may hold any number of sequences
        least = 1 if len(self.document_entries) == count + 1 else 0
        for start in range(0, len(self.document_entries) - 1, _BLOCK):
            entries = self.document_entries[start : start + _BLOCK + 1]
            wrong = np.flatnonzero(entries[1:] < entries[:-1] + least)
            if len(wrong):
                raise self._wrong_entry(start + int(wrong[0]) + 1, f"at least {int(entries[wrong[0]]) + least}")

    def _check_ends(self) -> None:
        count, itemsize = self.header.num_sequences, self.header.token_type.itemsize
        if self.document_entries[0] != 0:
            raise self._wrong_entry(0, "0")
        if self.document_entries[-1] != count:
            raise self._wrong_entry(len(self.document_entries) - 1, f"the number of sequences {count}")
        if not count:
            return
        if self.begins[0] != 0:
            raise damage(self._path, self.begin_offset(0), f"document 0 begins at byte {self.begins[0]} of the .bin")
        if self.begins[-1] < 0 or self.begins[-1] % itemsize or self.sizes[-1] < 0:
            raise damage(
                self._path,
                self.begin_offset(count - 1),
                f"the last document begins at byte {self.begins[-1]} of the .bin and has {self.sizes[-1]} tokens of "
                f"{itemsize} bytes",
            )

    def _wrong_entry(self, entry: int, expected: str) -> DataError:
        return damage(
            self._path,
            self._entries_at + 8 * entry,
            f"document entry {entry} is {self.document_entries[entry]}, and must be {expected}",
        )


class IndexPart(NamedTuple):
    """A run of sequences for ``write_index``; arrays may be memory-mapped.

    Attributes:
        sizes: int32, tokens of each sequence.
        document_ends: int64, number of sequences after each document, counted from the start of the part.
    """

    sizes: NDArray[np.int32]
    document_ends: NDArray[np.int64]


def write_index(file: DurableFile, stored: np.dtype[Any], parts: Sequence[IndexPart]) -> None:
    """Writes the .idx of the parts joined in order, in blocks of bounded memory.

    Args:
        file: takes the bytes.
        stored: type of the tokens in the .bin.
        parts: what the .bin holds, in order.
    """
    num_sequences = sum(len(part.sizes) for part in parts)
    num_entries = 1 + sum(len(part.document_ends) for part in parts)
    code = next(code for code, dtype in TOKEN_TYPES.items() if dtype == stored)
    file.write(HEADER.pack(MAGIC, VERSION, code, num_sequences, num_entries))
    for part in parts:
        for block in _blocks(part.sizes):
            file.write(block.astype("<i4").tobytes())
    position = 0
    for part in parts:
        for block in _blocks(part.sizes):
            ends = position + np.cumsum(block, dtype=np.int64) * stored.itemsize
            file.write(np.concatenate([[position], ends[:-1]]).astype("<i8").tobytes())
            position = int(ends[-1])
    sequences_before = 0
    file.write(np.zeros(1, "<i8").tobytes())
    for part in parts:
        for block in _blocks(part.document_ends):
            file.write((block + sequences_before).astype("<i8").tobytes())
        sequences_before += len(part.sizes)


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views of bounded length, none of them empty."""
    return (array[start : start + _BLOCK] for start in range(0, len(array), _BLOCK))
