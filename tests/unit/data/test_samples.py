from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_poro.data.index_cache import IndexCache
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.samples import SampleIndex, build_order, find_boundaries, plan_epochs
from megatron_poro.errors import DataError
from tests.unit.data.datasets import random_documents, write_dataset
from tests.unit.data.megatron_order import order_by_loops


def sample_index(
    dataset: IndexedDataset, folder: Path, *, num_samples: int = 40, sequence_length: int = 8, seed: int = 42
) -> SampleIndex:
    return SampleIndex(
        dataset,
        num_samples=num_samples,
        sequence_length=sequence_length,
        seed=seed,
        cache=IndexCache(folder / "cache"),
    )


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=30).filter(any),
    num_samples=st.integers(1, 120),
    sequence_length=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_order_is_megatrons(sizes: list[int], num_samples: int, sequence_length: int, seed: int) -> None:
    order = build_order(
        np.array(sizes, dtype=np.int32), num_samples=num_samples, sequence_length=sequence_length, seed=seed
    )
    documents, boundaries, shuffle = order_by_loops(
        sizes, num_samples=num_samples, sequence_length=sequence_length, seed=seed
    )
    assert order.documents.tolist() == documents
    assert [tuple(row) for row in order.boundaries.tolist()] == boundaries
    assert order.shuffle.tolist() == shuffle


@settings(max_examples=50, deadline=None)
@given(block=st.integers(1, 9), seed=st.integers(0, 1000))
def test_blocks_do_not_change_the_boundaries(block: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 6, 12).astype(np.int32)
    sizes[0] += 1
    documents = random.permutation(np.arange(12, dtype=np.int32))
    num_samples = (int(sizes.sum()) - 1) // 2
    whole = find_boundaries(sizes, documents, num_samples=num_samples, sequence_length=2)
    blocks = find_boundaries(sizes, documents, num_samples=num_samples, sequence_length=2, block_documents=block)
    np.testing.assert_array_equal(blocks, whole)


def test_dtypes_are_megatrons() -> None:
    order = build_order(np.array([5, 7], dtype=np.int32), num_samples=3, sequence_length=2, seed=1)
    assert [array.dtype.name for array in order] == ["int32", "int32", "uint32"]


@pytest.mark.parametrize(
    ("num_samples", "epochs", "separate_last"),
    [
        (1, 1, False),
        (99, 1, False),  # 1000 tokens hold 99 samples of 10: the last token has no label
        (100, 2, True),
        (192, 2, True),  # 93 of the second epoch
        (193, 2, False),  # 94 = int(0.95 * 99)
        (199, 2, False),
        (200, 3, True),
        (1000, 11, True),
    ],
)
def test_epochs_and_the_border_of_the_separate_last_one(num_samples: int, epochs: int, separate_last: bool) -> None:
    plan = plan_epochs(1000, num_samples=num_samples, sequence_length=10)
    assert (plan.epochs, plan.separate_last) == (epochs, separate_last)
    assert plan.samples == (1000 * epochs - 1) // 10


def test_epochs_of_the_real_finnish_corpus() -> None:
    """4 x 32.62B tokens are the Finnish share of 1000B; the half per cent on top begins a fifth epoch."""
    plan = plan_epochs(32_620_000_000, num_samples=64_029_888, sequence_length=2048)
    assert (plan.epochs, plan.separate_last) == (5, True)


def test_samples_put_back_in_order_are_the_stream_of_documents(tmp_path: Path) -> None:
    documents = random_documents(3, 20)
    index = sample_index(write_dataset(tmp_path / "a", documents), tmp_path)
    stream = [token for document in index.order.documents for token in documents[document]]
    place_of = {int(position): k for k, position in enumerate(index.order.shuffle)}
    for position in range(len(index)):
        sample = index.sample(place_of[position])
        assert sample.tolist() == stream[8 * position : 8 * position + 9]
        assert sample.dtype == np.int64


def test_every_document_is_read_once_per_epoch(tmp_path: Path) -> None:
    index = sample_index(write_dataset(tmp_path / "a", random_documents(3, 20)), tmp_path, num_samples=200)
    counts = np.bincount(index.order.documents)
    assert len(index) >= 200
    assert set(counts.tolist()) == {len(index.order.documents) // 20}
    assert sorted(index.order.shuffle.tolist()) == list(range(len(index)))


def test_dataset_shorter_than_a_sample_is_repeated(tmp_path: Path) -> None:
    index = sample_index(write_dataset(tmp_path / "a", [[7, 8, 9]]), tmp_path, num_samples=2)
    assert sorted(index.sample(k).tolist() for k in (0, 1)) == [[7, 8, 9] * 3, [9, 7, 8] * 3]


def test_sample_outside_the_index_is_an_index_error(tmp_path: Path) -> None:
    index = sample_index(write_dataset(tmp_path / "a", random_documents(3, 20)), tmp_path)
    for k in (-1, len(index)):
        with pytest.raises(IndexError, match=f"sample {k} of"):
            index.sample(k)


def test_dataset_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tokens"):
        sample_index(write_dataset(tmp_path / "a", [[], []]), tmp_path)


def test_damaged_sizes_are_found_before_an_order_is_made(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1, 2], [3]])
    content = bytearray((tmp_path / "a.idx").read_bytes())
    content[34] = 9
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(DataError, match="document 0 begins at byte 0 of the .bin and has 9 tokens"):
        sample_index(IndexedDataset(tmp_path / "a"), tmp_path)
    assert not (tmp_path / "cache").exists()


def test_order_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path / "a", random_documents(3, 20))
    first = [sample_index(dataset, tmp_path).sample(k).tolist() for k in range(40)]
    monkeypatch.delattr("megatron_poro.data.samples.build_order")
    assert [sample_index(dataset, tmp_path).sample(k).tolist() for k in range(40)] == first


@pytest.mark.parametrize("change", [{"num_samples": 41}, {"sequence_length": 9}, {"seed": 43}])
def test_every_input_has_its_own_order(tmp_path: Path, change: dict[str, int]) -> None:
    dataset = write_dataset(tmp_path / "a", random_documents(3, 20))
    sample_index(dataset, tmp_path)
    sample_index(dataset, tmp_path, **change)
    assert len(list((tmp_path / "cache").glob("*.json"))) == 2


def test_rewritten_dataset_has_its_own_order(tmp_path: Path) -> None:
    """Same path, same counts, other documents: an order found by path or by time stamp would be stale."""
    write_dataset(tmp_path / "a", [[1, 2, 3], [4]])
    assert sample_index(IndexedDataset(tmp_path / "a"), tmp_path, num_samples=1, sequence_length=3).sample(0).size
    for path in tmp_path.glob("a.*"):
        path.unlink()
    dataset = write_dataset(tmp_path / "a", [[1], [2, 3, 4]])
    sample_index(dataset, tmp_path, num_samples=1, sequence_length=3)
    assert len(list((tmp_path / "cache").glob("*.json"))) == 2
