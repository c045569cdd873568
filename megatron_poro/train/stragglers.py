"""Who is slow: the process that computes longer than the others of its stage for the same work.

A slow device makes the whole run slow, because all wait for it, and in every process's step time it looks the same. So
only computing counts here, without waiting for others. Single steps vary; a process is named when its median over
several steps is too long, several times in succession.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from megatron_poro.parallel.agreement import World
from megatron_poro.parallel.topology import Topology

BLOCK_STEPS = 5
"""Steps whose median is one opinion about a process."""

BLOCKS_IN_SUCCESSION = 3
"""Opinions that must agree; a process is named after 15 to 19 steps."""


class Slowness(NamedTuple):
    """How a process compares with the others of its stage.

    Attributes:
        rank: of the process.
        ratio: its compute time over theirs (their median).
        seconds: its compute time of a step.
    """

    rank: int
    ratio: float
    seconds: float


class Stragglers:
    """Collects the compute times of this process and compares them with the others'. All processes use it alike.

    Args:
        topology: which processes have the same work.
        limit: ratio from which on a process is slow; 0 for none.
    """

    def __init__(self, topology: Topology, *, limit: float) -> None:
        self._size = topology.world_size
        stages = [topology.coordinate(rank).pipeline for rank in range(self._size)]
        # the processes that have the same work as each
        self._others = [
            [peer for peer in range(self._size) if peer != rank and stages[peer] == stages[rank]]
            for rank in range(self._size)
        ]
        self._limit = limit
        self._own: list[float] = []
        self._successive = [0] * self._size
        self._reported: set[int] = set()

    def record(self, compute_seconds: float, world: World) -> list[Slowness]:
        """Notes one step; every few steps it compares, which is a collective call.

        Args:
            compute_seconds: of this process, without waiting for others.
            world: all processes.

        Returns:
            All processes where a comparison was made, else nothing.
        """
        if self._limit == 0 or not self._others[0]:  # no stage has two processes
            return []
        self._own.append(compute_seconds)
        if len(self._own) < BLOCK_STEPS:
            return []
        seconds = world.numbers(statistics.median(self._own))
        self._own.clear()
        return self.judge(seconds)

    def judge(self, seconds: Sequence[float]) -> list[Slowness]:
        """Compares the medians of one block, by rank, and counts who has been slow for how long."""
        found = []
        for rank, mine in enumerate(seconds):
            ratio = mine / max(statistics.median(seconds[peer] for peer in self._others[rank]), 1e-9)
            self._successive[rank] = self._successive[rank] + 1 if ratio > self._limit else 0
            if not self._successive[rank]:
                self._reported.discard(rank)
            found.append(Slowness(rank, ratio, mine))
        return found

    def named(self, found: Sequence[Slowness]) -> list[Slowness]:
        """Those that have been slow for long enough, each once until it is as fast as the others again."""
        slow = [
            one
            for one in found
            if self._successive[one.rank] >= BLOCKS_IN_SUCCESSION and one.rank not in self._reported
        ]
        self._reported.update(one.rank for one in slow)
        return slow
