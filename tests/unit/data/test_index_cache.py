import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from megatron_poro.data.index_cache import IndexCache
from megatron_poro.errors import DataError


def arrays(value: int = 1) -> dict[str, NDArray[np.int64]]:
    return {"first": np.full(5, value), "second": np.arange(3)}


def never() -> dict[str, NDArray[np.int64]]:
    raise AssertionError("was built again")


def test_second_call_maps_what_the_first_one_built(tmp_path: Path) -> None:
    built = IndexCache(tmp_path).arrays("a", {"x": 1}, arrays)
    opened = IndexCache(tmp_path).arrays("a", {"x": 1}, never)
    for name, array in arrays().items():
        np.testing.assert_array_equal(built[name], array)
        np.testing.assert_array_equal(opened[name], array)
    with pytest.raises(ValueError, match="read-only"):
        opened["first"][0] = 7


def test_other_facts_are_another_entry(tmp_path: Path) -> None:
    cache = IndexCache(tmp_path)
    assert cache.arrays("a", {"x": 1}, lambda: arrays(1))["first"][0] == 1
    assert cache.arrays("a", {"x": 2}, lambda: arrays(2))["first"][0] == 2
    assert cache.arrays("a", {"x": 1}, never)["first"][0] == 1


def test_order_of_facts_does_not_count(tmp_path: Path) -> None:
    cache = IndexCache(tmp_path)
    cache.arrays("a", {"x": 1, "y": 2}, arrays)
    cache.arrays("a", {"y": 2, "x": 1}, never)


def test_builders_that_race_do_no_harm(tmp_path: Path) -> None:
    both_building = threading.Barrier(2, timeout=60)
    results: list[NDArray[np.int64]] = []

    def build() -> dict[str, NDArray[np.int64]]:
        both_building.wait()
        return arrays()

    def work() -> None:
        results.append(IndexCache(tmp_path).arrays("a", {"x": 1}, build)["first"])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.tolist() for result in results] == [[1] * 5] * 2
    assert len(list(tmp_path.iterdir())) == 3


def test_entry_exists_only_when_its_record_does(tmp_path: Path) -> None:
    """A builder that is killed after the arrays and before the record leaves no entry behind."""
    IndexCache(tmp_path).arrays("a", {"x": 1}, lambda: arrays(1))
    next(tmp_path.glob("*.json")).unlink()
    assert IndexCache(tmp_path).arrays("a", {"x": 1}, lambda: arrays(2))["first"][0] == 2


def test_failing_builder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="built again"):
        IndexCache(tmp_path).arrays("a", {"x": 1}, never)
    assert list(tmp_path.iterdir()) == []


def test_truncated_array_is_named_with_the_way_out(tmp_path: Path) -> None:
    IndexCache(tmp_path).arrays("a", {"x": 1}, arrays)
    path = next(tmp_path.glob("*.first.npy"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=rf"{path.name} is damaged .*Delete .*start again"):
        IndexCache(tmp_path).arrays("a", {"x": 1}, never)


def test_damaged_record_is_named(tmp_path: Path) -> None:
    IndexCache(tmp_path).arrays("a", {"x": 1}, arrays)
    next(tmp_path.glob("*.json")).write_text("{")
    with pytest.raises(DataError, match=r"\.json is damaged"):
        IndexCache(tmp_path).arrays("a", {"x": 1}, never)


def test_name_of_any_kind_stays_inside_the_folder(tmp_path: Path) -> None:
    IndexCache(tmp_path / "cache").arrays("../ä/b", {"x": 1}, arrays)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert all(path.is_file() for path in (tmp_path / "cache").iterdir())
