"""What ``engine.reproducible`` keeps and what it costs: every layout of up to 8 processes against one process.

Run from the checkout: ``python -m benchmarks.reproducible`` (options: ``--steps 200 --precision bf16 fp32``). CPU only,
half an hour on 2 cores. Ends with status 1 if a layout without tensor parallelism differs in one bit with the mode on,
or one with it by more than 1e-5 of a loss in fp32.
"""

import argparse
import os
import statistics
import sys
import time
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch import Tensor

from megatron_poro.config.run import EngineKind, PipelineSchedule, Precision, TrainConfig
from megatron_poro.parallel.topology import Topology
from tests.support.ranks import run_ranks
from tests.support.tiny import full_values, make_engine, run_steps, tiny_config

SINGLE = (1, 1, 1)
LAYOUTS = [
    *((PipelineSchedule.ONE_F_ONE_B, (1, stages, data)) for stages in (1, 2, 4, 8) for data in (1, 2, 4, 8)),
    *((PipelineSchedule.DUALPIPEV, (1, stages, data)) for stages in (2, 4) for data in (1, 2, 4)),
]
"""Schedule and TP, PP, DP; those that need more than 8 processes or more microbatches than there are are left out."""

TENSOR_LAYOUTS = [(2, 1, 1), (4, 1, 1)]
MICROBATCHES = 8
TENSOR_TOLERANCE = 1e-5


class Curve(NamedTuple):
    """Loss and gradient norm of each step, masters and moments at the end, median processor time of a step in ms."""

    steps: list[tuple[float, float]]
    values: dict[str, Tensor]
    milliseconds: float


def config_of(kind: EngineKind, precision: Precision, schedule: PipelineSchedule, reproducible: bool) -> TrainConfig:
    """Six blocks of width 32, eight microbatches of two samples a step, uneven loss masks, dropout."""
    config = tiny_config(
        kind=kind,
        precision=precision,
        pipeline_schedule=schedule,
        reproducible=reproducible,
        global_batch=2 * MICROBATCHES,
        microbatch=2,
        num_layers=6,
        hidden_dropout=0.1,
    )
    config.schedule.learning_rate = 1e-3
    return config


def curve(config: TrainConfig, topology: Topology, steps: int) -> Curve:
    """Trains at a layout; collective."""
    engine = make_engine(config, topology)
    shown, seconds = [], []
    for step in range(steps):
        before = time.process_time()
        (loss,), (norm,), _ = run_steps(engine, config, range(step, step + 1))
        seconds.append(time.process_time() - before)
        shown.append((loss, norm))
    return Curve(shown, full_values(engine), 1000 * statistics.median(seconds))


def at_layout(config: TrainConfig, layout: tuple[int, int, int], steps: int) -> Curve:
    """Trains at a layout in as many processes as it has."""
    topology = Topology(*layout)
    found: Curve = run_ranks(curve, config, topology, steps, world=topology.world_size, timeout_seconds=1800.0)[0]
    return found


def furthest(found: Curve, expected: Curve) -> float:
    """Largest relative difference of a step's loss."""
    return max(abs(a - b) / abs(b) for (a, _), (b, _) in zip(found.steps, expected.steps, strict=True))


def fits(schedule: PipelineSchedule, layout: tuple[int, int, int]) -> bool:
    """Whether a layout has at most 8 processes and at least the microbatches that its schedule needs."""
    _, stages, data = layout
    needed = 2 * stages if schedule is PipelineSchedule.DUALPIPEV else 1
    return stages * data <= 8 and MICROBATCHES // data >= needed


def compare(precision: Precision, steps: int) -> bool:
    """Prints a line for each layout; whether all is as claimed."""
    single = Topology()
    exact, plain = (
        curve(config_of(EngineKind.LOCAL, precision, PipelineSchedule.ONE_F_ONE_B, mode), single, steps)
        for mode in (True, False)
    )
    good = True
    for schedule, layout in LAYOUTS:
        if not fits(schedule, layout):
            continue
        on, off = (
            at_layout(config_of(EngineKind.DEEPSPEED, precision, schedule, mode), layout, steps)
            for mode in (True, False)
        )
        equal = sum(a == b for a, b in zip(on.steps, exact.steps, strict=True))
        values = sum(torch.equal(value, exact.values[name]) for name, value in on.values.items())
        good = good and equal == steps and values == len(exact.values)
        print(
            f"| {precision.value} | {schedule.value} | {' x '.join(map(str, layout))} | {MICROBATCHES // layout[2]} "
            f"| {equal} of {steps} | {values} of {len(exact.values)} | {furthest(off, plain):.1e} "
            f"| {on.milliseconds:.1f} / {off.milliseconds:.1f} |",
            flush=True,
        )
    return good


def compare_tensor(steps: int) -> bool:
    """Prints how far tensor parallelism is from one process in fp32; whether that is allowed."""
    kinds = PipelineSchedule.ONE_F_ONE_B
    expected = curve(config_of(EngineKind.LOCAL, Precision.FP32, kinds, True), Topology(), steps)
    good = True
    for layout in TENSOR_LAYOUTS:
        found = at_layout(config_of(EngineKind.DEEPSPEED, Precision.FP32, kinds, True), layout, steps)
        difference = furthest(found, expected)
        good = good and difference <= TENSOR_TOLERANCE
        print(f"| fp32 | {' x '.join(map(str, layout))} | {difference:.1e} |", flush=True)
    return good


def main() -> int:
    """Prints two tables; the status says whether every claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--precision", nargs="+", type=Precision, default=list(Precision))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| precision | schedule | TP x PP x DP | accumulation steps | steps equal to one process's "
        "| masters and moments equal | loss, relative, mode off | ms of processor time a step, on / off |\n"
        + "|---" * 8
        + "|"
    )
    good = [compare(precision, arguments.steps) for precision in arguments.precision]
    print("\n| precision | TP x PP x DP | loss, relative, mode on |\n|---|---|---|")
    good.append(compare_tensor(arguments.steps))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
