"""Objects of git-lfs: whole and right, or not there."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.hub.exchange import ClientGone, Refused
from tests.support.hub.large_files import ObjectStore, Pointer, read_pointer

CONTENT = bytes(range(256)) * 10
OID = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path)


def kept(store: ObjectStore) -> list[Path]:
    return [path for path in store.folder.rglob("*") if path.is_file()]


def test_a_pointer_is_read_back_and_nothing_else_is_one() -> None:
    text = Pointer(OID, 2560).encode()
    assert text == f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 2560\n".encode()
    assert read_pointer(text) == Pointer(OID, 2560)
    assert read_pointer(text + b"\n") is None
    assert read_pointer(b"{}") is None


def test_an_object_is_found_by_its_checksum_and_size(store: ObjectStore) -> None:
    store.put(OID, [CONTENT[:1000], CONTENT[1000:]])
    assert store.path(OID).read_bytes() == CONTENT
    assert store.has(OID)
    assert store.has(OID, len(CONTENT))
    assert not store.has(OID, 1)
    assert not store.has("0" * 64)


def test_content_of_another_name_is_refused_and_leaves_nothing(store: ObjectStore) -> None:
    with pytest.raises(Refused, match="does not match"):
        store.put(OID, [CONTENT[:-1]])
    assert kept(store) == []


def test_an_upload_that_breaks_off_leaves_nothing(store: ObjectStore) -> None:
    def blocks() -> object:
        yield CONTENT[:100]
        raise ClientGone

    with pytest.raises(ClientGone):
        store.put(OID, blocks())  # type: ignore[arg-type]
    assert kept(store) == []


def test_parts_become_the_object_and_go(store: ObjectStore) -> None:
    tags = [(number, store.put_part(OID, number, [part])) for number, part in ((2, CONTENT[500:]), (1, CONTENT[:500]))]
    assert not store.has(OID)
    store.join_parts(OID, tags)
    assert store.path(OID).read_bytes() == CONTENT
    assert kept(store) == [store.path(OID)]


def test_two_requests_at_once_may_join_the_same_parts(store: ObjectStore) -> None:
    for _ in range(20):
        tags = [(1, store.put_part(OID, 1, [CONTENT[:500]])), (2, store.put_part(OID, 2, [CONTENT[500:]]))]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _, tags=tags: store.join_parts(OID, tags), range(4)))  # type: ignore[misc]
        assert kept(store) == [store.path(OID)]
        store.path(OID).unlink()


def test_a_part_that_is_missing_or_another_is_named(store: ObjectStore) -> None:
    tag = store.put_part(OID, 1, [CONTENT])
    with pytest.raises(Refused, match=r"parts \[2\] of .* were not uploaded"):
        store.join_parts(OID, [(1, tag), (2, tag)])
    store.put_part(OID, 1, [b"another"])
    with pytest.raises(Refused, match=r"parts \[1\]"):
        store.join_parts(OID, [(1, tag)])


def test_only_checksums_are_names(store: ObjectStore) -> None:
    with pytest.raises(Refused, match="is not a sha256"):
        store.path("../../etc")
