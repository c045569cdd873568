"""A step of the pipeline, instruction by instruction: who computes what when, who waits, who holds how much.

The orders are those of the schedules that run (a test compares them with DeepSpeed's own), the times are put in from
outside. So a bubble is what is left over on the clock, not a formula.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron_poro.config.derived import stages_of_pipeline
from megatron_poro.config.run import PipelineSchedule
from megatron_poro.parallel.schedules import Pass, Work, work_order
from megatron_poro.parallel.stages import rank_of_stage

FILLED = 4
"""Times the ranks, microbatches: as many as it takes until a rank does the same again and again and a longer step is no
different but for its length. DualPipeV takes twice the ranks to fill, and as many to drain; 1F1B half of that."""

_MEASURED = 2
"""Times the ranks, microbatches: what a step needs beyond that for the time of one more to be seen."""


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


def simulate(
    schedule: PipelineSchedule,
    *,
    ranks: int,
    microbatches: int,
    seconds: Callable[[Pass, int], float],
    transfer_seconds: float = 0.0,
    deferred: int | None = None,
) -> Timeline:
    """Runs a step on the clock.

    Args:
        schedule: the order of work.
        ranks: pipeline ranks.
        microbatches: of one replica.
        seconds: time of a pass through a stage.
        transfer_seconds: time to send what a pass has made to another rank. Under 1F1B both ends wait for it, as
            DeepSpeed's messages do, and where weight gradients are put off neither does; under DualPipeV a rank sends
            and receives at the same time.
        deferred: ``engine.deferred_weight_gradients``.
    """
    steps = _in_possible_order(schedule, ranks, microbatches, deferred)
    timelines: list[list[TimedWork]] = [[] for _ in range(ranks)]
    times = _on_the_clock(steps, schedule, seconds, transfer_seconds, deferred)
    for (work, rank, *_), (start, end) in zip(steps, times, strict=True):
        timelines[rank].append(TimedWork(work, start, end))
    return Timeline(tuple(map(tuple, timelines)), max(timed[-1].end for timed in timelines))


class _Step(NamedTuple):
    """A piece of work in a step.

    Attributes:
        work: what.
        rank: whose.
        received: position of the piece of another rank that makes what this one is sent; ``None`` where what it needs
            is there.
        sends: whether what this makes is sent to another rank.
    """

    work: Work
    rank: int
    received: int | None
    sends: bool


@functools.lru_cache(maxsize=128)
def _in_possible_order(
    schedule: PipelineSchedule, ranks: int, microbatches: int, deferred: int | None
) -> tuple[_Step, ...]:
    """The work of all ranks, each piece behind what it needs. Nothing of it depends on how long anything takes."""
    last_stage = stages_of_pipeline(schedule, ranks) - 1
    orders = [
        work_order(schedule, ranks=ranks, rank=rank, microbatches=microbatches, deferred=deferred)
        for rank in range(ranks)
    ]
    places: dict[Work, int] = {}
    steps: list[_Step] = []
    position = [0] * ranks
    waiting = sum(map(len, orders))
    while waiting:
        before = waiting
        for rank, order in enumerate(orders):
            while position[rank] < len(order):
                work = order[position[rank]]
                needed, follower = _needs(work, last_stage), _followed_by(work, last_stage)
                if needed is not None and needed not in places:
                    break
                is_sent = needed is not None and rank_of_stage(needed.stage, ranks=ranks) != rank
                sends = follower is not None and rank_of_stage(follower, ranks=ranks) != rank
                places[work] = len(steps)
                steps.append(_Step(work, rank, places[needed] if needed and is_sent else None, sends))
                position[rank] += 1
                waiting -= 1
        assert waiting < before, f"{schedule.value} with {ranks} ranks and {microbatches} microbatches waits for itself"
    return tuple(steps)


def _on_the_clock(
    steps: Sequence[_Step],
    schedule: PipelineSchedule,
    seconds: Callable[[Pass, int], float],
    transfer_seconds: float,
    deferred: int | None,
) -> list[tuple[float, float]]:
    """Start and end of each piece of work."""
    to_send = transfer_seconds if deferred is None else 0.0
    to_receive = to_send if schedule is PipelineSchedule.ONE_F_ONE_B else 0.0
    lengths = {place: seconds(*place) for place in {(step.work.kind, step.work.stage) for step in steps}}
    free = dict.fromkeys((step.rank for step in steps), 0.0)
    arrived: list[float] = []
    times = []
    for work, rank, received, sends in steps:
        start = free[rank]
        if received is not None:
            start = max(start + to_receive, arrived[received])
        end = start + lengths[work.kind, work.stage]
        # a rank that waits for what it sends goes on when the other one has it
        free[rank] = end + (to_send if sends else 0.0)
        arrived.append(end + (transfer_seconds if sends else 0.0))
        times.append((start, end))
    return times


class StepLength(NamedTuple):
    """How long a step of the pipeline is.

    Attributes:
        seconds: of all its passes.
        behind: for each stage, seconds from the end of the last pass that gives its weights a gradient to the end of
            the step.
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
    deferred: int | None = None,
) -> StepLength:
    """The length of a step; arguments as those of :func:`simulate`, and quick for any number of microbatches.

    Once a pipeline is full each further microbatch takes as long as the slowest rank needs for it. So a few times as
    many microbatches as ranks are simulated, twice, and the difference is carried on.
    """
    few = (FILLED + _MEASURED) * ranks

    def run(number: int) -> StepLength:
        steps = _in_possible_order(schedule, ranks, number, deferred)
        times = _on_the_clock(steps, schedule, seconds, transfer_seconds, deferred)
        # of each stage the last pass that is not a forward one
        last = {
            step.work.stage: end
            for step, (_, end) in zip(steps, times, strict=True)
            if step.work.kind is not Pass.FORWARD
        }
        whole = max(last.values())
        return StepLength(whole, tuple(whole - last[stage] for stage in sorted(last)))

    if microbatches <= few + ranks:
        return run(microbatches)
    shorter, longer = run(few), run(few + ranks)
    each = (longer.seconds - shorter.seconds) / ranks
    return longer._replace(seconds=longer.seconds + (microbatches - few - ranks) * each)


class Held(NamedTuple):
    """What a rank holds at a moment, in the unit of what it was computed from.

    Attributes:
        kept: what forward passes have left behind for their backward passes.
        deferred: what backward passes have left behind for weight gradients that wait.
    """

    kept: float
    deferred: float = 0.0


def most_held(
    order: Sequence[Work], per_microbatch: Mapping[int, float], deferred: Mapping[int, float] | None = None
) -> dict[int, Held]:
    """Most that a rank holds at a time of what passes leave behind for other ones.

    Args:
        order: the rank's work.
        per_microbatch: what the forward pass of a microbatch leaves behind on each of the rank's stages; a stage that
            is not there leaves nothing.
        deferred: the same of a backward pass.

    Returns:
        For each stage, the most while a microbatch is in it forward or backward, what its forward pass leaves behind
        included, and not what its backward pass does.
    """
    put_off = deferred or {}
    most: dict[int, Held] = {}
    for stage, kept, waiting in _states(tuple(order)):
        held = Held(
            sum(number * per_microbatch.get(of, 0.0) for of, number in kept),
            sum(number * put_off.get(of, 0.0) for of, number in waiting),
        )
        most[stage] = max(most.get(stage, held), held, key=sum)
    return most


_Counts = tuple[tuple[int, int], ...]
"""Microbatches of each stage."""


@functools.lru_cache(maxsize=1024)
def _states(order: tuple[Work, ...]) -> tuple[tuple[int, _Counts, _Counts], ...]:
    """What a rank holds while a microbatch is in a stage forward or backward: of how many microbatches there is
    something for backward passes, and of how many for weight gradients. Each state once.
    """
    kept, waiting = Counter[int](), Counter[int]()
    states: dict[tuple[int, _Counts, _Counts], None] = {}
    for kind, stage, _ in order:
        kept[stage] += kind is Pass.FORWARD
        waiting[stage] -= kind is Pass.WEIGHT_GRADIENTS
        if kind is not Pass.WEIGHT_GRADIENTS:
            states[stage, tuple(kept.items()), tuple(waiting.items())] = None
        kept[stage] -= kind is Pass.BACKWARD
        waiting[stage] += kind is Pass.BACKWARD
    return tuple(states)


def _needs(work: Work, last_stage: int) -> Work | None:
    """What must be finished before."""
    if work.kind is Pass.WEIGHT_GRADIENTS:
        return work._replace(kind=Pass.BACKWARD)
    if work.kind is Pass.FORWARD:
        return None if work.stage == 0 else Work(Pass.FORWARD, work.stage - 1, work.microbatch)
    if work.stage == last_stage:
        return Work(Pass.FORWARD, last_stage, work.microbatch)
    return Work(Pass.BACKWARD, work.stage + 1, work.microbatch)


def _followed_by(work: Work, last_stage: int) -> int | None:
    """The stage that gets what this work has made; ``None`` for what stays."""
    if work.kind is Pass.WEIGHT_GRADIENTS:
        return None
    if work.kind is Pass.FORWARD:
        return work.stage + 1 if work.stage < last_stage else None
    return work.stage - 1 if work.stage > 0 else None
