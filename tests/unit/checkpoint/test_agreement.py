"""One process alone agrees with itself; what several do is in ``tests/distributed/checkpoint/test_failures.py``."""

import pytest

from megatron_poro.checkpoint.agreement import World
from megatron_poro.errors import CheckpointError, DataError
from megatron_poro.parallel.groups import ParallelGroups


def test_a_world_of_one_gathers_itself_without_a_runtime() -> None:
    world = World.of(ParallelGroups.single())
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert world.gather("x") == ["x"]


def test_what_a_disk_says_is_explained() -> None:
    with pytest.raises(CheckpointError, match=r"^disk: broken$"), World().together(lambda error: f"disk: {error}"):
        raise OSError("broken")


def test_our_own_errors_keep_their_sentence() -> None:
    with pytest.raises(CheckpointError, match=r"^a tokenizer is missing$"), World().together(lambda _: "never asked"):
        raise DataError("a tokenizer is missing")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="bug"), World().together():
        raise KeyError("bug")
