"""Processes know each other's values and flags, and what fails on one fails on all."""

from collections.abc import Callable

import torch.distributed as dist

from megatron_poro.errors import CheckpointError, DataError, PoroError, TopologyError
from megatron_poro.parallel.agreement import World
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.topology import Topology
from tests.support.ranks import run_ranks


def gather_and_any() -> tuple[list[str], bool, bool]:
    world = World.default()
    return world.gather(f"of rank {world.rank}"), world.any(world.rank == 1), world.any(False)


def test_values_and_flags_of_one_process_are_known_to_all() -> None:
    values = ["of rank 0", "of rank 1", "of rank 2"]
    assert run_ranks(gather_and_any, world=3) == [(values, True, False)] * 3


def outcome(world: World, fail: Callable[[int], None]) -> str:
    """What a block that fails comes to on this process."""
    try:
        with world.together():
            fail(world.rank)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def miss_a_file(ranks: tuple[int, ...]) -> str:
    def fail(rank: int) -> None:
        if rank in ranks:
            raise DataError(f"file of rank {rank} is missing.")

    return outcome(World.default(), fail)


def test_error_of_one_process_becomes_the_same_error_on_all() -> None:
    assert run_ranks(miss_a_file, (2,), world=3) == ["DataError: file of rank 2 is missing."] * 3


def test_of_several_errors_the_lowest_rank_is_told() -> None:
    assert run_ranks(miss_a_file, (1, 2), world=3) == ["DataError: file of rank 1 is missing."] * 3


def test_block_without_error_raises_nothing() -> None:
    assert run_ranks(miss_a_file, (), world=2) == ["fine"] * 2


def fail_in_two_ways() -> str:
    def fail(rank: int) -> None:
        if rank == 0:
            raise TopologyError("the grid is wrong.")
        raise DataError("a file is missing.")

    return outcome(World.default(), fail)


def test_of_errors_of_two_classes_the_lowest_rank_has_its_way() -> None:
    assert run_ranks(fail_in_two_ways, world=2) == ["TopologyError: the grid is wrong."] * 2


def meet_a_bug() -> str:
    def fail(rank: int) -> None:
        if rank == 1:
            raise KeyError("bug")

    return outcome(World.default(), fail)


def test_a_bug_on_one_process_is_raised_there_and_told_to_the_others() -> None:
    told = "RuntimeError: another process failed (KeyError: 'bug'); its own traceback says where."
    assert run_ranks(meet_a_bug, world=3) == [told, "KeyError: 'bug'", told]


def break_a_disk() -> str:
    world = World.default()
    try:
        with world.together(
            faults=(OSError,), explain=lambda error: CheckpointError(f"disk of rank {world.rank}: {error}")
        ):
            if world.rank == 1:
                raise OSError("broken")
    except PoroError as error:
        return f"{type(error).__name__}: {error}, from {error.__cause__!r}"
    return "fine"


def test_a_fault_is_explained_by_the_process_that_met_it() -> None:
    told = "CheckpointError: disk of rank 1: broken"
    assert run_ranks(break_a_disk, world=2) == [f"{told}, from None", f"{told}, from OSError('broken')"]


def agree_over_a_group_of_two() -> tuple[list[int], bool, str] | None:
    """Rank 0 takes no part: over the default group the other two would wait for it."""
    group = dist.new_group([1, 2])
    if dist.get_rank() == 0:
        return None
    world = World(dist.get_rank() - 1, 2, group)

    def fail(rank: int) -> None:
        if rank == 1:
            raise DataError("a file is missing.")

    return world.gather(world.rank), world.any(world.rank == 1), outcome(world, fail)


def test_everything_travels_over_the_group_of_the_world() -> None:
    agreed = ([0, 1], True, "DataError: a file is missing.")
    assert run_ranks(agree_over_a_group_of_two, world=3) == [None, agreed, agreed]


def world_of_a_grid() -> tuple[bool, World]:
    given = World(dist.get_rank(), dist.get_world_size(), dist.new_group())
    kept = ParallelGroups.create(Topology(data=2), world=given).world is given
    return kept, ParallelGroups.create(Topology(data=2)).world


def test_a_grid_keeps_the_world_it_is_given_and_else_spans_the_default_group() -> None:
    assert run_ranks(world_of_a_grid, world=2) == [(True, World(0, 2)), (True, World(1, 2))]
