"""How much of a step the stages of a pipeline wait: measured with the real engine, and as a plan works it out.

Run from the checkout, on an idle machine: ``python -m benchmarks.pipeline_bubble`` (options: ``--layouts 1x2 2x2
--microbatches 8 --steps 6``). CPU only, processes of one thread joined by gloo. Both numbers are the share of all
processes' time, from the first pass of a step to the end of its last, in which they are in no pass.

Measured: the engine, its schedule and its messages run as in training; the clock is read where each pass begins and
ends, on all processes, whose clocks are one. Planned: ``poro plan``'s schedule, fed with the
mean times of the very passes of that step by stage and kind, and with transfers that take no time. So the
difference is what a plan does not know: reading of batches, transfers, Python between two instructions, messages that
hold up their sender, and passes that take longer at one time than at another. How well a plan guesses the times of
passes is not measured, nor is anything behind the last pass: sums of gradients and the optimizer.

Processes that compute and share a core would fill each other's bubbles, so the clock says nothing about them. Hence two
kinds of passes:

- ``computed``: of the model of the other benchmarks, where there is a core for each process;
- ``drawn out``: of a small model, each prolonged by sleeping to 60 ms forward and 120 ms backward, so that processes
  hardly want a core, at any layout. ``uneven`` gives the last stage half as much again, as a head does. Where weight
  gradients are put off (``1f1b, 0`` and more: of how many microbatches they wait) 60 of the 120 ms are theirs.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import starmap
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch

from benchmarks.our_step import LEARNING_RATE, Shape, microbatches, token_batches, train_config
from megatron_poro.cli.host_memory import keep_freed_memory
from megatron_poro.config.derived import stages_of_pipeline
from megatron_poro.config.run import EngineKind, PipelineSchedule, Precision, TrainConfig
from megatron_poro.engine.build import build_engine
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.schedules import Pass, Work, work_order
from megatron_poro.parallel.step_clock import Part, StepClock
from megatron_poro.parallel.topology import Topology
from megatron_poro.planning.pipeline import TimedWork, Timeline, simulate
from megatron_poro.train.next_token import NextToken
from tests.support.ranks import run_ranks

LAYOUTS = [(1, 2), (2, 2), (1, 4)]
FORWARD_SECONDS = 0.06
UNEVEN = 1.5
WARM_UP_STEPS = 2


class Case(NamedTuple):
    """One row of the table.

    Attributes:
        topology: the process grid, of one replica.
        schedule: order of the passes.
        microbatches: of a step.
        last_stage: how many times as long as another one's its passes are drawn out; ``None`` for passes that compute.
        deferred: ``engine.deferred_weight_gradients``.
    """

    topology: Topology
    schedule: PipelineSchedule
    microbatches: int
    last_stage: float | None
    deferred: int | None = None

    @property
    def order_name(self) -> str:
        """How the table calls the order of passes."""
        return self.schedule.value if self.deferred is None else f"{self.schedule.value}, {self.deferred}"

    @property
    def passes(self) -> str:
        """How the table calls them."""
        return {None: "computed", 1.0: "drawn out"}.get(self.last_stage, "drawn out, uneven")

    def drawn_seconds(self, work: Work) -> float:
        """How long a pass takes at least."""
        if self.last_stage is None:
            return 0.0
        is_last = work.stage == stages_of_pipeline(self.schedule, self.topology.pipeline) - 1
        # a backward pass makes two gradients, if that of weights is not a pass of its own
        gradients = 2 if work.kind is Pass.BACKWARD and self.deferred is None else 1
        return FORWARD_SECONDS * gradients * (self.last_stage if is_last else 1.0)

    def order(self, pipeline_rank: int) -> list[Work]:
        """The passes of a process."""
        return list(
            work_order(
                self.schedule,
                ranks=self.topology.pipeline,
                rank=pipeline_rank,
                microbatches=self.microbatches,
                deferred=self.deferred,
            )
        )


class PassClock(StepClock):
    """Notes when each pass of a step begins and ends, by the clock that all processes of a machine share.

    Args:
        case: says how long passes are drawn out.
        pipeline_rank: of this process.

    Attributes:
        passes: those since it was last emptied.
    """

    def __init__(self, case: Case, pipeline_rank: int) -> None:
        super().__init__()
        self._case, self._order = case, case.order(pipeline_rank)
        self.passes: list[TimedWork] = []

    @contextmanager
    def running(self, part: Part) -> Iterator[None]:
        """Measures the block if it is a pass."""
        if part is not Part.COMPUTE:
            yield
            return
        work = self._order[len(self.passes)]
        began = time.perf_counter()
        yield
        time.sleep(max(0.0, began + self._case.drawn_seconds(work) - time.perf_counter()))
        self.passes.append(TimedWork(work, began, time.perf_counter()))


def measure(case: Case, steps: int) -> list[list[TimedWork]]:
    """This process's passes of some steps. Collective."""
    groups = ParallelGroups.create(case.topology)
    clock = PassClock(case, groups.pipeline.rank)
    config, shape = _run_of(case)
    keep_freed_memory()
    torch.set_flush_denormal(True)
    engine = build_engine(
        config,
        groups=replace(groups, clock=clock),
        objective=NextToken,
        num_sources=1,
        device=torch.device("cpu"),
    )
    batches = token_batches(shape)
    found = []
    for step in range(WARM_UP_STEPS + steps):
        clock.passes = []
        engine.train_step(
            microbatches(batches[step % len(batches)], shape) if engine.needs_data else [],
            learning_rate=LEARNING_RATE,
            consumed_samples=step * shape.samples,
        )
        assert len(clock.passes) == len(case.order(groups.pipeline.rank)), "the engine takes other passes than planned"
        found.append(clock.passes)
    return found[WARM_UP_STEPS:]


def measured_step(passes: Sequence[Sequence[TimedWork]]) -> Timeline:
    """A step from its first pass to the end of its last.

    Args:
        passes: of each process.
    """
    began = min(timed.start for rank in passes for timed in rank)
    ended = max(timed.end for rank in passes for timed in rank)
    return Timeline(tuple(map(tuple, passes)), ended - began)


def planned_step(case: Case, step: Timeline) -> Timeline:
    """The step that a plan makes of the mean times of a step's passes."""
    return simulate(
        case.schedule,
        ranks=case.topology.pipeline,
        microbatches=case.microbatches,
        seconds=lambda kind, stage: mean_seconds([step], kind, stage),
        deferred=case.deferred,
    )


def mean_seconds(steps: Sequence[Timeline], kind: Pass, stage: int) -> float:
    """Mean time of a stage's passes of one kind, over all processes and steps."""
    return statistics.mean(
        timed.end - timed.start
        for step in steps
        for rank in step.ranks
        for timed in rank
        if timed.work.kind is kind and timed.work.stage == stage
    )


def row(case: Case, steps: int) -> str:
    """Measures a case; returns its line of the table, medians over the steps."""
    found = run_ranks(measure, case, steps, world=case.topology.world_size, timeout_seconds=600.0)
    measured = [measured_step(passes) for passes in zip(*found, strict=True)]
    planned = [planned_step(case, step) for step in measured]
    times = ", ".join(
        " + ".join(f"{1000 * mean_seconds(measured, kind, stage):.0f}" for kind in _kinds(case))
        for stage in range(stages_of_pipeline(case.schedule, case.topology.pipeline))
    )
    more = [100 * (took.bubble - expected.bubble) for took, expected in zip(measured, planned, strict=True)]
    cells = [
        case.passes,
        f"{case.topology.tensor} x {case.topology.pipeline}",
        case.order_name,
        case.microbatches,
        times,
        *(f"{1000 * statistics.median(step.seconds for step in side):.0f}" for side in (planned, measured)),
        *(f"{statistics.median(step.bubble for step in side):.1%}" for side in (planned, measured)),
        f"{statistics.median(more):+.1f} ({min(more):+.1f} to {max(more):+.1f})",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layouts", nargs="+", type=_layout, default=list(starmap(Topology, LAYOUTS)), help="tensor x pipeline"
    )
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    print(
        "| passes | TP x PP | schedule | microbatches | forward + backward (+ weights) ms, by stage | step ms, planned "
        "| measured | bubble, planned | measured | points more (least to most) |\n" + "|---" * 10 + "|"
    )
    left_out = []
    for topology in arguments.layouts:
        deferring = sorted({0, topology.pipeline - 1})
        orders = [(schedule, None) for schedule in PipelineSchedule]
        for schedule, deferred in [*orders, *((PipelineSchedule.ONE_F_ONE_B, number) for number in deferring)]:
            for last_stage in (None, 1.0, UNEVEN):
                case = Case(topology, schedule, arguments.microbatches, last_stage, deferred)
                if last_stage is None and topology.world_size > cores:
                    left_out.append(f"{case.order_name} at {topology.tensor} x {topology.pipeline}")
                elif schedule is PipelineSchedule.ONE_F_ONE_B or case.microbatches >= 2 * topology.pipeline:
                    print(row(case, arguments.steps), flush=True)
    if left_out:
        print(f"\n{cores} cores are too few for passes that compute: {', '.join(left_out)}", file=sys.stderr)


def _kinds(case: Case) -> list[Pass]:
    return [kind for kind in Pass if kind is not Pass.WEIGHT_GRADIENTS or case.deferred is not None]


def _layout(text: str) -> Topology:
    tensor, pipeline = text.split("x")
    return Topology(int(tensor), int(pipeline))


def _run_of(case: Case) -> tuple[TrainConfig, Shape]:
    """What a case trains."""
    if case.last_stage is None:
        shape = Shape(512, 1, Precision.BF16, microbatches=case.microbatches)
        config = train_config(shape, EngineKind.DEEPSPEED)
    else:
        shape = Shape(32, 1, Precision.BF16, vocabulary=256, microbatches=case.microbatches)
        config = train_config(shape, EngineKind.DEEPSPEED)
        config.model = replace(config.model, num_layers=6, hidden_size=64)
    config.engine.pipeline_schedule = case.schedule
    config.engine.deferred_weight_gradients = case.deferred
    return config, shape


if __name__ == "__main__":
    main()
