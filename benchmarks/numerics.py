"""How far each layout is from one process: the measured differences behind the tolerances of docs/numerics.md.

Run from the checkout: ``python -m benchmarks.numerics``. CPU only, about three minutes on 2 cores.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch

from megatron_poro.config.run import EngineKind, PipelineSchedule, Precision
from megatron_poro.parallel.topology import Topology
from tests.distributed.test_truth import check_many
from tests.support.ranks import run_ranks
from tests.support.tiny import Trained, masters, tiny_config, train

STEPS = 20
LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 4, 1), (1, 1, 2), (2, 2, 1), (2, 2, 2)]


def furthest(found: list[float], expected: list[float]) -> float:
    """Largest relative difference of two curves."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def main() -> None:
    """Prints one line for each precision, schedule and layout."""
    torch.set_num_threads(1)
    print(f"{STEPS} steps; largest differences from LocalEngine (loss, norm, gradient relative; weight absolute)")
    print(
        f"{'precision':9} {'schedule':9} {'TP PP DP':9} {'loss':>9} {'norm':>9} {'weight':>9} {'gradient':>9}  sequence"
    )
    for precision in Precision:
        control = train(tiny_config(kind=EngineKind.LOCAL, precision=precision), steps=STEPS)
        for schedule in PipelineSchedule:
            for layout in LAYOUTS:
                if schedule is PipelineSchedule.DUALPIPEV and layout[1] != 2:
                    continue
                for sequence in (False, True) if layout[0] > 1 else (False,):
                    _print_layout(precision, schedule, layout, control, sequence=sequence)


def _print_layout(
    precision: Precision,
    schedule: PipelineSchedule,
    layout: tuple[int, int, int],
    control: Trained,
    *,
    sequence: bool,
) -> None:
    config = tiny_config(precision=precision, pipeline_schedule=schedule, sequence=sequence)
    topology = Topology(*layout)
    found: Trained = _trained(config, topology)
    (gradient,) = run_ranks(check_many, config, [(*layout, 1)], world=topology.world_size)[0]
    weight = max(float((masters(found)[n] - w).abs().max()) for n, w in masters(control).items())
    print(
        f"{precision.value:9} {schedule.value:9} {' '.join(map(str, layout)):9} "
        f"{furthest(found.losses, control.losses):9.1e} {furthest(found.norms, control.norms):9.1e} "
        f"{weight:9.1e} {gradient:9.1e}  {'cut' if sequence else 'whole'}",
        flush=True,
    )


def _trained(config, topology):  # type: ignore[no-untyped-def]
    return run_ranks(_train_steps, config, topology, world=topology.world_size)[0]


def _train_steps(config, topology):  # type: ignore[no-untyped-def]
    return train(config, topology, steps=STEPS)


if __name__ == "__main__":
    main()
