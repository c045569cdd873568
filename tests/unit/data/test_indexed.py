import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.errors import DataError
from tests.unit.data.datasets import write_dataset

DOCUMENTS = [[1, 2, 3], [4], [], [5, 6, 99]]


@settings(max_examples=30, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 70_000), max_size=8), min_size=1, max_size=20),
    vocab_size=st.sampled_from([70_001, 128_000]),
)
def test_documents_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], vocab_size: int
) -> None:
    dataset = write_dataset(tmp_path_factory.mktemp("d") / "a.en-fi", documents, vocab_size=vocab_size)
    assert [dataset.document(i).tolist() for i in range(len(dataset))] == documents
    assert dataset.sizes.tolist() == [len(document) for document in documents]
    assert dataset.num_tokens == sum(map(len, documents))
    assert dataset.max_token_id() == max((max(document, default=-1) for document in documents), default=-1)


def test_dataset_without_documents_is_read(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "a", [])
    assert (len(dataset), dataset.num_tokens, dataset.max_token_id()) == (0, 0, -1)
    dataset.check_layout()


def test_document_outside_the_dataset_is_an_index_error(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "a", DOCUMENTS)
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"document {index} of .* which has 4"):
            dataset.document(index)


def test_documents_cannot_be_written_to(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "a", DOCUMENTS)
    with pytest.raises(ValueError, match="read-only"):
        dataset.document(0)[0] = 7


def test_documents_of_several_sequences_are_read_by_sequence(tmp_path: Path) -> None:
    index = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, 3, 3) + struct.pack("<3i", 2, 1, 1)
    (tmp_path / "a.idx").write_bytes(index + struct.pack("<3q", 0, 8, 12) + struct.pack("<3q", 0, 2, 3))
    (tmp_path / "a.bin").write_bytes(struct.pack("<4i", 70000, 2, 3, 4))
    dataset = IndexedDataset(tmp_path / "a")
    assert [dataset.document(i).tolist() for i in range(3)] == [[70000, 2], [3], [4]]
    assert dataset.document_ends.tolist() == [2, 3]


@pytest.mark.parametrize("missing", ["a.bin", "a.idx"])
def test_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write_dataset(tmp_path / "a", DOCUMENTS)
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=f"{missing} does not exist; dataset .*a needs a.idx and a.bin"):
        IndexedDataset(tmp_path / "a")


@pytest.mark.parametrize("change", [-1, 2])
def test_tokens_of_the_wrong_length_are_refused_with_both_sizes(tmp_path: Path, change: int) -> None:
    write_dataset(tmp_path / "a", DOCUMENTS)
    content = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes((content + b"\0\0")[: len(content) + change])
    with pytest.raises(DataError, match=rf"a.bin has {14 + change} bytes, but a.idx describes 14"):
        IndexedDataset(tmp_path / "a")


@pytest.mark.parametrize("change", [-1, 4])
def test_index_of_the_wrong_length_is_refused_with_both_sizes(tmp_path: Path, change: int) -> None:
    write_dataset(tmp_path / "a", DOCUMENTS)
    content = (tmp_path / "a.idx").read_bytes()
    (tmp_path / "a.idx").write_bytes((content + bytes(4))[: len(content) + change])
    with pytest.raises(DataError, match=rf"a.idx has {122 + change} bytes, .* needs 122"):
        IndexedDataset(tmp_path / "a")


def test_sizes_that_do_not_add_up_are_found(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", DOCUMENTS)
    content = bytearray((tmp_path / "a.idx").read_bytes())
    content[34] = 2  # the first document loses a token; both ends still fit
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.idx, byte 50: document 0 .* has 2 tokens .* document 1 begins at 6"):
        IndexedDataset(tmp_path / "a").check_layout()


def test_scan_finds_the_largest_id_in_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_poro.data.indexed._SCAN_TOKENS", 3)
    for position in range(10):
        tokens = [1] * 10
        tokens[position] = 77
        assert write_dataset(tmp_path / str(position), [tokens]).max_token_id() == 77


def test_limited_scan_looks_at_both_ends_and_no_more_than_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_poro.data.indexed._SCAN_TOKENS", 1)
    assert write_dataset(tmp_path / "first", [[50, 1, 1, 1, 1]]).max_token_id(limit_tokens=2) == 50
    assert write_dataset(tmp_path / "last", [[1, 1, 1, 1, 50]]).max_token_id(limit_tokens=2) == 50
    assert write_dataset(tmp_path / "between", [[1, 50, 1, 1, 1]]).max_token_id(limit_tokens=2) == 1


def test_digest_tells_layouts_apart(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", [[1, 2], [3]])
    other = write_dataset(tmp_path / "other", [[1], [2, 3]])
    copy = write_dataset(tmp_path / "copy", [[4, 5], [6]])
    assert one.digest != other.digest
    assert one.digest == copy.digest


def _write_side_file(prefix: Path, **changes: object) -> None:
    content = {
        "tokenizer": "abc",
        "vocab_size": 100,
        "documents": 4,
        "tokens": 7,
        "max_token_id": 99,
        "empty_documents": 2,
        "inputs": ["x.jsonl", "ä.jsonl"],
    }
    Path(f"{prefix}.meta.json").write_text(json.dumps({**content, **changes}), encoding="utf-8")


def test_side_file_is_read_and_written_alike(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "a", DOCUMENTS)
    assert dataset.metadata() is None
    _write_side_file(tmp_path / "a")
    metadata = dataset.metadata()
    assert metadata == DatasetMetadata(
        tokenizer="abc",
        vocab_size=100,
        documents=4,
        tokens=7,
        max_token_id=99,
        empty_documents=2,
        inputs=("x.jsonl", "ä.jsonl"),
    )
    (tmp_path / "a.meta.json").write_text(metadata.to_json(), encoding="utf-8")
    assert dataset.metadata() == metadata


def test_side_file_of_another_dataset_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "a", DOCUMENTS)
    _write_side_file(tmp_path / "a", tokens=8)
    with pytest.raises(DataError, match=r"describes 4 documents and 8 tokens, but a.idx has 4 and 7"):
        dataset.metadata()


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"tokenizer": 1}'])
def test_damaged_side_file_is_named(tmp_path: Path, content: str) -> None:
    dataset = write_dataset(tmp_path / "a", DOCUMENTS)
    (tmp_path / "a.meta.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.meta\.json is damaged"):
        dataset.metadata()


def test_opening_reads_no_tokens(tmp_path: Path) -> None:
    """Opening must cost nothing per document: a .bin of holes as large as a corpus opens at once."""
    count = 3
    size = 2**28
    index = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, count, count + 1) + struct.pack("<3i", *[size] * count)
    pointers = np.arange(count, dtype="<i8") * size * 4
    (tmp_path / "a.idx").write_bytes(index + pointers.tobytes() + np.arange(count + 1, dtype="<i8").tobytes())
    with open(tmp_path / "a.bin", "wb") as file:
        file.truncate(4 * size * count)
    dataset = IndexedDataset(tmp_path / "a")
    assert dataset.num_tokens == 3 * 2**28
    assert len(dataset.document(2)) == size
