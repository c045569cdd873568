"""A step of the pipeline, instruction by instruction: who computes what when, who waits, who holds how much.

The orders are those of the schedules that run (a test compares them with DeepSpeed's own), the times are put in from
outside. So a bubble is what is left over on the clock, not a formula.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from megatron_poro.config.derived import stages_of_pipeline
from megatron_poro.config.run import PipelineSchedule
from megatron_poro.parallel.stages import rank_of_stage, stages_of_rank

FILLED = 4
"""Times the ranks, microbatches: as many as it takes until a rank does the same again and again and a longer step is no
different but for its length. DualPipeV takes twice the ranks to fill, and as many to drain; 1F1B half of that."""

_MEASURED = 2
"""Times the ranks, microbatches: what a step needs beyond that for the time of one more to be seen."""


class Pass(str, Enum):
    """Direction of a piece of work."""

    FORWARD = "forward"
    BACKWARD = "backward"


class Work(NamedTuple):
    """One pass of one microbatch through one stage.

    Attributes:
        kind: forward or backward.
        stage: position in the model; under DualPipeV a rank has two.
        microbatch: number within the step.
    """

    kind: Pass
    stage: int
    microbatch: int


@dataclass(frozen=True)
class TimedWork:
    """Work on the clock of a step, in seconds since its start."""

    work: Work
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """A step.

    Attributes:
        ranks: what each pipeline rank does, in order.
        seconds: when the last one has finished.
    """

    ranks: tuple[tuple[TimedWork, ...], ...]
    seconds: float

    def busy_seconds(self, rank: int) -> float:
        """Time that a rank computes."""
        return sum(timed.end - timed.start for timed in self.ranks[rank])

    @property
    def bubble(self) -> float:
        """Share of all ranks' time in which they wait."""
        busy = sum(self.busy_seconds(rank) for rank in range(len(self.ranks)))
        return 1.0 - busy / (self.seconds * len(self.ranks))


def work_order(schedule: PipelineSchedule, *, ranks: int, rank: int, microbatches: int) -> list[Work]:
    """What a rank computes in one step, in order.

    Source: 1F1B, Narayanan et al. 2019 (PipeDream-Flush, arXiv:2006.09503); DualPipeV, DeepSeek-V3 (arXiv:2412.19437),
    as DeepSpeed runs them, weight gradients inside the backward pass.
    """
    if schedule is PipelineSchedule.DUALPIPEV:
        return _dualpipev(ranks, rank, microbatches)
    warmup = min(ranks - rank - 1, microbatches)
    order = [Work(Pass.FORWARD, rank, number) for number in range(warmup)]
    for number in range(microbatches):
        if warmup + number < microbatches:
            order.append(Work(Pass.FORWARD, rank, warmup + number))
        order.append(Work(Pass.BACKWARD, rank, number))
    return order


def _dualpipev(ranks: int, rank: int, microbatches: int) -> list[Work]:
    """Letters are passes, digits the half of the model: F1 is a forward pass of the second half."""
    before = ranks - rank - 1
    pattern = "F0 " * (2 * before)
    pattern += "F0 F1 " * (rank + 1)
    pattern += "B1 F1 " * before
    pattern += "F0 B1 F1 B0 " * (microbatches - 2 * ranks + rank + 1)
    pattern += "B1 F1 B0 " * before
    pattern += "B1 B0 " * (rank + 1)
    pattern += "B0 " * before
    stages = stages_of_rank(rank, ranks=ranks, num_stages=stages_of_pipeline(PipelineSchedule.DUALPIPEV, ranks))
    done: dict[str, int] = {}
    order = []
    for token in pattern.split():
        number = done.get(token, 0)
        done[token] = number + 1
        order.append(Work(Pass.FORWARD if token[0] == "F" else Pass.BACKWARD, stages[int(token[1])], number))
    return order


def simulate(
    schedule: PipelineSchedule,
    *,
    ranks: int,
    microbatches: int,
    seconds: Callable[[Pass, int], float],
    transfer_seconds: float = 0.0,
) -> Timeline:
    """Runs a step on the clock.

    Args:
        schedule: the order of work.
        ranks: pipeline ranks.
        microbatches: of one replica.
        seconds: time of a pass through a stage.
        transfer_seconds: time to send what a pass has made to another rank. Under 1F1B both ends wait for it, as
            DeepSpeed's messages do; under DualPipeV a rank sends and receives at the same time.
    """
    last_stage = stages_of_pipeline(schedule, ranks) - 1
    to_receive = transfer_seconds if schedule is PipelineSchedule.ONE_F_ONE_B else 0.0
    orders = [work_order(schedule, ranks=ranks, rank=rank, microbatches=microbatches) for rank in range(ranks)]
    arrived: dict[Work, float] = {}
    timelines: list[list[TimedWork]] = [[] for _ in range(ranks)]
    position, free = [0] * ranks, [0.0] * ranks
    waiting = sum(map(len, orders))
    while waiting:
        before = waiting
        for rank, order in enumerate(orders):
            while position[rank] < len(order):
                work = order[position[rank]]
                needed = _needs(work, last_stage)
                if needed is not None and needed not in arrived:
                    break
                start = free[rank]
                if needed is not None:
                    sent = rank_of_stage(needed.stage, ranks=ranks) != rank
                    start = max(start + (to_receive if sent else 0.0), arrived[needed])
                end = start + seconds(work.kind, work.stage)
                follower = _followed_by(work, last_stage)
                leaves = follower is not None and rank_of_stage(follower, ranks=ranks) != rank
                # a rank sends before it goes on, and the other one has it when it is sent
                free[rank] = arrived[work] = end + (transfer_seconds if leaves else 0.0)
                timelines[rank].append(TimedWork(work, start, end))
                position[rank] += 1
                waiting -= 1
        assert waiting < before, f"{schedule.value} with {ranks} ranks and {microbatches} microbatches waits for itself"
    return Timeline(tuple(map(tuple, timelines)), max(free))


class StepLength(NamedTuple):
    """How long a step of the pipeline is.

    Attributes:
        seconds: of all its passes.
        behind: for each stage, seconds from the end of its last backward pass to the end of the step.
    """

    seconds: float
    behind: tuple[float, ...]


def step_length(
    schedule: PipelineSchedule,
    *,
    ranks: int,
    microbatches: int,
    seconds: Callable[[Pass, int], float],
    transfer_seconds: float = 0.0,
) -> StepLength:
    """The length of a step; arguments as those of :func:`simulate`, and quick for any number of microbatches.

    Once a pipeline is full each further microbatch takes as long as the slowest rank needs for it. So a few times as
    many microbatches as ranks are simulated, twice, and the difference is carried on.
    """
    run = functools.partial(simulate, schedule, ranks=ranks, seconds=seconds, transfer_seconds=transfer_seconds)
    few = (FILLED + _MEASURED) * ranks
    if microbatches <= few + ranks:
        timeline = run(microbatches=microbatches)
        return StepLength(timeline.seconds, _behind(timeline))
    shorter, longer = run(microbatches=few), run(microbatches=few + ranks)
    each = (longer.seconds - shorter.seconds) / ranks
    return StepLength(longer.seconds + (microbatches - few - ranks) * each, _behind(longer))


def _behind(timeline: Timeline) -> tuple[float, ...]:
    last = {
        timed.work.stage: timed.end for rank in timeline.ranks for timed in rank if timed.work.kind is Pass.BACKWARD
    }
    return tuple(timeline.seconds - last[stage] for stage in sorted(last))


def most_kept(order: Sequence[Work], per_microbatch: Mapping[int, float]) -> dict[int, float]:
    """Most that a rank holds at a time of what forward passes leave behind for their backward passes.

    Args:
        order: the rank's work.
        per_microbatch: what one microbatch leaves behind on each of the rank's stages, in any unit; a stage that is not
            there leaves nothing.

    Returns:
        For each stage, the most while a microbatch is in it, what this one leaves behind included.
    """
    held, most = 0.0, dict.fromkeys((work.stage for work in order), 0.0)
    for work in order:
        left = per_microbatch.get(work.stage, 0.0)
        held += left if work.kind is Pass.FORWARD else 0.0
        most[work.stage] = max(most[work.stage], held)
        held -= left if work.kind is Pass.BACKWARD else 0.0
    return most


def _needs(work: Work, last_stage: int) -> Work | None:
    """What must be finished before."""
    if work.kind is Pass.FORWARD:
        return None if work.stage == 0 else Work(Pass.FORWARD, work.stage - 1, work.microbatch)
    if work.stage == last_stage:
        return Work(Pass.FORWARD, last_stage, work.microbatch)
    return Work(Pass.BACKWARD, work.stage + 1, work.microbatch)


def _followed_by(work: Work, last_stage: int) -> int | None:
    """The stage that gets what this work has made; ``None`` for what stays."""
    if work.kind is Pass.FORWARD:
        return work.stage + 1 if work.stage < last_stage else None
    return work.stage - 1 if work.stage > 0 else None
