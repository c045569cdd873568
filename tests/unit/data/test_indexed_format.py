import struct
from pathlib import Path

import numpy as np
import pytest

from megatron_poro.data.durable import durable_write
from megatron_poro.data.indexed_format import HEADER, IndexPart, read_header, token_type, write_index
from megatron_poro.errors import DataError

HAND_MADE_INDEX = bytes.fromhex(
    "4d4d4944494458 0000"  # MMIDIDX and two zeros
    "0100000000000000"  # version 1
    "08"  # uint16
    "0300000000000000"  # 3 sequences
    "0400000000000000"  # 4 document entries
    "02000000 01000000 03000000"  # sizes
    "0000000000000000 0400000000000000 0600000000000000"  # byte offsets
    "0000000000000000 0100000000000000 0200000000000000 0300000000000000"  # document entries
)


def index_bytes(path: Path, sizes: list[list[int]], ends: list[list[int]]) -> bytes:
    parts = [
        IndexPart(np.array(size, dtype=np.int32), np.array(end, dtype=np.int64))
        for size, end in zip(sizes, ends, strict=True)
    ]
    with durable_write(path) as file:
        write_index(file, np.dtype("<u2"), parts)
    return path.read_bytes()


def test_index_is_the_bytes_computed_by_hand(tmp_path: Path) -> None:
    assert index_bytes(tmp_path / "a.idx", [[2, 1, 3]], [[1, 2, 3]]) == HAND_MADE_INDEX


def test_parts_join_to_the_index_of_the_whole(tmp_path: Path) -> None:
    assert index_bytes(tmp_path / "a.idx", [[2], [], [1, 3]], [[1], [], [1, 2]]) == HAND_MADE_INDEX


def test_documents_of_several_sequences_keep_their_entries(tmp_path: Path) -> None:
    joined = index_bytes(tmp_path / "a.idx", [[2, 1], [3]], [[2], [1]])
    assert struct.unpack("<3q", joined[-24:]) == (0, 2, 3)


def test_blocks_do_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_poro.data.indexed_format._BLOCK", 2)
    assert index_bytes(tmp_path / "a.idx", [[2, 1, 3]], [[1, 2, 3]]) == HAND_MADE_INDEX


@pytest.mark.parametrize("counts", [(0, 1), (1, 2), (7, 8), (7, 3)])
def test_index_has_34_bytes_and_12_per_sequence_and_8_per_entry(tmp_path: Path, counts: tuple[int, int]) -> None:
    sequences, entries = counts
    content = index_bytes(tmp_path / "a.idx", [[5] * sequences], [list(range(1, entries))])
    assert len(content) == 34 + 12 * sequences + 8 * entries == read_header(tmp_path / "a.idx", content).index_bytes


@pytest.mark.parametrize(
    ("code", "name"), [(1, "uint8"), (2, "int8"), (3, "int16"), (4, "int32"), (5, "int64"), (8, "uint16")]
)
def test_codes_name_megatrons_integer_types(code: int, name: str) -> None:
    header = read_header(Path("a.idx"), HEADER.pack(b"MMIDIDX\x00\x00", 1, code, 0, 1))
    assert header.token_type == np.dtype(name)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"MMIDIDX", "a.idx has 7 bytes, an index has at least 34"),
        (HEADER.pack(b"TNTIDX\x00\x00\x01", 1, 4, 0, 1), "begins with b'TNTIDX"),
        (HEADER.pack(b"MMIDIDX\x00\x00", 2, 4, 0, 1), "is version 2 .* reads version 1"),
        (HEADER.pack(b"MMIDIDX\x00\x00", 1, 6, 0, 1), r"floating point numbers \(code 6, byte 17\)"),
        (HEADER.pack(b"MMIDIDX\x00\x00", 1, 7, 0, 1), r"floating point numbers \(code 7, byte 17\)"),
        (HEADER.pack(b"MMIDIDX\x00\x00", 1, 9, 0, 1), r"an unknown type \(code 9, byte 17\)"),
    ],
)
def test_foreign_headers_are_refused(start: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_header(Path("a.idx"), start)


def test_two_bytes_per_token_below_65500_ids_and_four_from_there() -> None:
    assert token_type(65499) == np.uint16
    assert token_type(65500) == np.int32
    assert token_type(128000) == np.int32
