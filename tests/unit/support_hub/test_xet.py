"""Chunks, blobs and recipes of Xet: what is read out of uploads, and which pieces make a range of a file."""

import struct
import time
from io import BytesIO
from pathlib import Path

import pytest

from tests.support.hub import xet
from tests.support.hub.exchange import Refused
from tests.support.hub.xet import ChunkStore, Term, read_chunks, read_shard

SIZES = [10, 20, 30, 40]
"""Of the chunks of the file, unpacked; packed they are half as long."""


def name(number: int) -> str:
    return f"{number:016x}" * 4


def digest(number: int) -> bytes:
    return struct.pack("<4Q", *[number] * 4)


def blob(sizes: list[int]) -> bytes:
    packed = (
        b"\0" + (size // 2).to_bytes(3, "little") + b"\1" + size.to_bytes(3, "little") + bytes(size // 2)
        for size in sizes
    )
    return b"".join(packed) + b"XETBLOB index"


def shard(*, verified: bool, with_sha256: bool) -> bytes:
    flags = xet.HAS_VERIFICATION * verified | xet.HAS_SHA256 * with_sha256
    file = digest(7) + struct.pack("<II8x", flags, 2)
    terms = digest(1) + struct.pack("<4I", 0, 60, 0, 3) + digest(2) + struct.pack("<4I", 0, 40, 0, 1)
    checks = bytes(2 * xet.RECORD) if verified else b""
    checksum = digest(9) + bytes(16) if with_sha256 else b""
    return bytes(xet.RECORD) + file + terms + checks + checksum + b"\xff" * 32 + bytes(16) + b"the rest"


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    """A store with a file of two blobs, of three chunks and of one."""
    made = ChunkStore(tmp_path)
    assert made.put_blob(name(1), [blob(SIZES[:3])])
    assert made.put_blob(name(2), [blob(SIZES[3:])])
    made.put_shard(shard(verified=True, with_sha256=True))
    return made


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("with_sha256", [True, False])
def test_a_recipe_is_read_whatever_comes_with_it(verified: bool, with_sha256: bool) -> None:
    (recipe,) = read_shard(shard(verified=verified, with_sha256=with_sha256))
    assert recipe.file == name(7)
    assert recipe.sha256 == (name(9) if with_sha256 else None)
    assert recipe.terms == [Term(name(1), 60, 0, 3), Term(name(2), 40, 0, 1)]


def test_chunks_end_where_the_index_begins() -> None:
    assert read_chunks(BytesIO(blob([10, 20]))) == [(13, 10), (31, 20)]


def test_a_file_is_found_by_its_sha256(store: ChunkStore) -> None:
    assert store.file_of(name(9)) == name(7)
    assert store.file_of(name(8)) is None


def test_a_recipe_of_blobs_that_are_not_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="names a xorb that was not uploaded"):
        ChunkStore(tmp_path).put_shard(shard(verified=False, with_sha256=False))


def test_a_blob_is_new_once(store: ChunkStore) -> None:
    assert not store.put_blob(name(1), [blob(SIZES[:3])])


@pytest.mark.parametrize(
    ("first", "last", "skipped", "spans"),
    [
        (0, None, 0, [(1, 0, 3, 60), (2, 0, 1, 40)]),
        (0, 9, 0, [(1, 0, 1, 10)]),
        (9, 10, 9, [(1, 0, 2, 30)]),
        (10, 29, 0, [(1, 1, 2, 20)]),
        (15, 59, 5, [(1, 1, 3, 50)]),
        (59, 60, 29, [(1, 2, 3, 30), (2, 0, 1, 40)]),
        (60, None, 0, [(2, 0, 1, 40)]),
        (99, 99, 39, [(2, 0, 1, 40)]),
    ],
)
def test_a_range_takes_the_chunks_that_it_touches(
    store: ChunkStore, first: int, last: int | None, skipped: int, spans: list[tuple[int, int, int, int]]
) -> None:
    answer = store.reconstruction(name(7), first, last, "http://blobs")
    assert answer["offset_into_first_range"] == skipped
    assert answer["terms"] == [
        {"hash": name(blob), "unpacked_length": size, "range": {"start": start, "end": end}}
        for blob, start, end, size in spans
    ]


def test_places_name_the_packed_bytes(store: ChunkStore) -> None:
    places = store.reconstruction(name(7), 10, 29, "http://blobs")["fetch_info"]
    place = {"range": {"start": 1, "end": 2}, "url": f"http://blobs/{name(1)}", "url_range": {"start": 13, "end": 30}}
    assert places == {name(1): [place]}


def test_unknown_files_and_ranges_beyond_the_end_are_refused(store: ChunkStore) -> None:
    with pytest.raises(Refused) as refusal:
        store.reconstruction(name(8), 0, None, "")
    assert refusal.value.status == 404
    with pytest.raises(Refused) as refusal:
        store.reconstruction(name(7), 100, None, "")
    assert refusal.value.status == 416


def test_tokens_have_a_scope_and_an_end(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    token, end = store.token("write")
    assert store.scope(token) == "write"
    with pytest.raises(Refused):
        store.scope("another")
    monkeypatch.setattr(time, "time", lambda: end + 1)
    with pytest.raises(Refused):
        store.scope(token)
