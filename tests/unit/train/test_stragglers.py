"""A process that computes longer than the others of its stage is named soon, and nobody else ever."""

import random

import pytest

from megatron_poro.parallel.topology import Topology
from megatron_poro.train.stragglers import BLOCK_STEPS, BLOCKS_IN_SUCCESSION, Slowness, Stragglers

GRID = Topology(tensor=2, pipeline=2, data=2)


class _World:
    """All processes at once: each block's medians, by rank."""

    def __init__(self, topology: Topology, limit: float) -> None:
        self.topology = topology
        self.stragglers = Stragglers(topology, limit=limit)

    def steps(self, seconds: list[list[float]]) -> list[tuple[int, Slowness]]:
        """Feeds steps, each with the seconds of every rank; who was named after which."""
        named = []
        for first in range(0, len(seconds) - BLOCK_STEPS + 1, BLOCK_STEPS):
            block = seconds[first : first + BLOCK_STEPS]
            medians = [sorted(column)[BLOCK_STEPS // 2] for column in zip(*block, strict=True)]
            named += [(first + BLOCK_STEPS, one) for one in self.stragglers.named(self.stragglers.judge(medians))]
        return named


def _noisy(count: int, *, seed: int, slow: int | None = None, from_step: int = 0) -> list[list[float]]:
    """Steps of 100 ms, the second stage's of 150, with 3 % noise and a hiccup of twice the time in every fiftieth."""
    random_numbers = random.Random(seed)
    steps = []
    for step in range(count):
        row = []
        for rank in range(GRID.world_size):
            seconds = 0.1 if GRID.coordinate(rank).pipeline == 0 else 0.15
            seconds *= random_numbers.gauss(1.0, 0.03) * (2.0 if random_numbers.random() < 0.02 else 1.0)
            row.append(seconds * (1.2 if rank == slow and step >= from_step else 1.0))
        steps.append(row)
    return steps


@pytest.mark.parametrize("slow", range(GRID.world_size))
@pytest.mark.parametrize("from_step", range(0, BLOCK_STEPS))
def test_process_that_becomes_slower_by_a_fifth_is_named_within_twenty_steps(slow: int, from_step: int) -> None:
    named = _World(GRID, 1.1).steps(_noisy(40, seed=slow, slow=slow, from_step=from_step))
    assert [one.rank for _, one in named] == [slow]
    assert named[0][0] - from_step <= 20
    assert named[0][1].ratio == pytest.approx(1.2, abs=0.08)


def test_nobody_is_named_in_ten_thousand_clean_steps() -> None:
    assert _World(GRID, 1.1).steps(_noisy(10_000, seed=1)) == []


def test_nobody_is_named_where_the_guard_is_off_or_nobody_can_be_compared() -> None:
    for stragglers in (
        Stragglers(GRID, limit=0.0),
        Stragglers(Topology(pipeline=4), limit=1.1),
    ):
        for _ in range(BLOCK_STEPS * BLOCKS_IN_SUCCESSION):
            assert stragglers.record(1.0, None) == []  # type: ignore[arg-type]  # nothing is communicated


def test_slow_process_is_told_once_until_it_recovers() -> None:
    world = _World(Topology(data=2), 1.1)
    slow, equal = [[0.1, 0.13]] * 30, [[0.1, 0.1]] * 30
    assert len(world.steps(slow)) == 1
    assert world.steps(slow) == []
    assert world.steps(equal) == []
    assert len(world.steps(slow)) == 1


def test_one_of_two_is_compared_with_the_other_and_not_with_their_mean() -> None:
    found = Stragglers(Topology(data=2), limit=1.1).judge([0.12, 0.10])
    assert found[0].ratio == pytest.approx(1.2)
    assert found[1].ratio == pytest.approx(1 / 1.2)
