import errno
from pathlib import Path

import numpy as np
import pytest

from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.indexed_writer import IndexedWriter
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.errors import DataError
from tests.unit.data.datasets import write_dataset
from tests.unit.data.test_indexed_format import HAND_MADE_INDEX

METADATA = DatasetMetadata(
    tokenizer="f", vocab_size=100, documents=1, tokens=2, max_token_id=9, empty_documents=0, inputs=("a.jsonl",)
)


def test_dataset_is_the_bytes_computed_by_hand(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[258, 1], [2], [3, 4, 65498]], vocab_size=65499)
    assert (tmp_path / "a.bin").read_bytes() == bytes.fromhex("0201 0100 0200 0300 0400 daff")
    assert (tmp_path / "a.idx").read_bytes() == HAND_MADE_INDEX


def test_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1, 127999]], vocab_size=128000)
    assert (tmp_path / "a.bin").read_bytes() == bytes.fromhex("01000000 fff30100")
    assert (tmp_path / "a.idx").read_bytes()[17] == 4


def test_many_at_once_equals_one_by_one(tmp_path: Path) -> None:
    write_dataset(tmp_path / "one", [[1, 2], [3], [4, 5, 6]])
    with IndexedWriter(tmp_path / "many", vocab_size=100) as writer:
        writer.append_many(np.array([1, 2, 3]), np.array([2, 1], dtype=np.int32))
        writer.append_many(np.array([4, 5, 6]), np.array([3], dtype=np.int32))
        assert (writer.num_documents, writer.num_tokens, writer.max_token_id) == (3, 6, 6)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"many{suffix}").read_bytes() == (tmp_path / f"one{suffix}").read_bytes()


@pytest.mark.parametrize("token", [-1, 100, 65536])
def test_id_outside_the_vocabulary_is_refused_before_it_wraps(tmp_path: Path, token: int) -> None:
    with (
        pytest.raises(DataError, match=f"token id {token} does not fit the vocabulary of 100"),
        IndexedWriter(tmp_path / "a", vocab_size=100) as writer,
    ):
        writer.append([5, token])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_the_disk_is_full_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = IndexedWriter(tmp_path / "a", vocab_size=100)
    writer.append([1])
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left"), writer:
        pass
    assert list(tmp_path.iterdir()) == []


def test_existing_dataset_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1]])
    with pytest.raises(DataError, match=r"a\.idx exists.*--overwrite"):
        IndexedWriter(tmp_path / "a", vocab_size=100)
    with IndexedWriter(tmp_path / "a", vocab_size=100, overwrite=True) as writer:
        writer.append([7, 8])
    assert IndexedDataset(tmp_path / "a").document(0).tolist() == [7, 8]


def test_failed_overwrite_keeps_the_old_dataset(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1]])
    writer = IndexedWriter(tmp_path / "a", vocab_size=100, overwrite=True)
    writer.append([7, 8])
    with pytest.raises(KeyError), writer:
        raise KeyError("stop")
    assert IndexedDataset(tmp_path / "a").document(0).tolist() == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


def test_side_file_of_a_replaced_dataset_goes_with_it(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "a", vocab_size=100) as writer:
        writer.append([1, 9])
        writer.commit(METADATA)
    assert IndexedDataset(tmp_path / "a").metadata() == METADATA
    with IndexedWriter(tmp_path / "a", vocab_size=100, overwrite=True) as writer:
        writer.append([7])
    assert IndexedDataset(tmp_path / "a").metadata() is None


def test_index_appears_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[str] = []
    monkeypatch.setattr("os.replace", lambda source, target: published.append(Path(target).suffix))
    with IndexedWriter(tmp_path / "a", vocab_size=100) as writer:
        writer.append([1, 9])
        writer.commit(METADATA)
    assert published == [".bin", ".json", ".idx"]
