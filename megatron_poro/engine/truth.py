"""Start-up proof: the gradients of a fixed batch at this layout are those of one process.

A wrong gradient is silent: loss still falls. DeepSpeed up to 0.19.2 divided gradients once per pipeline stage, and only
a comparison like this one sees it. Rank 0 computes the whole batch with
:class:`~megatron_poro.engine.local.LocalEngine` and broadcasts each full gradient; every process compares its own
slice. The fixed batch has an uneven loss mask, so a mean over microbatches instead of tokens shows too.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from megatron_poro.config.run import Precision, TrainConfig
from megatron_poro.data.batch import Batch
from megatron_poro.engine.local import LocalEngine
from megatron_poro.engine.objective import ObjectiveFactory
from megatron_poro.engine.pipeline_engine import PipelineEngine
from megatron_poro.errors import EngineError
from megatron_poro.models.bloom import BlockOptions
from megatron_poro.models.families import family
from megatron_poro.models.init import weight_dtype
from megatron_poro.models.kernel_choice import choose_kernel
from megatron_poro.parallel.agreement import World
from megatron_poro.parallel.collectives import broadcast_from_first
from megatron_poro.parallel.groups import AxisGroup, ParallelGroups
from megatron_poro.parallel.rng import DropoutClock
from megatron_poro.parallel.shards import name_of, shard_of

TOLERANCE = {Precision.FP32: 1e-3, Precision.BF16: 0.15}
"""Largest relative L2 difference of one parameter's gradient (docs/numerics.md); a factor of 2 would be 0.5 or 1."""


class Difference(NamedTuple):
    """How far a gradient is from the truth.

    Attributes:
        relative: L2 norm of the difference over that of the true gradient (of the whole parameter's slice).
        name: canonical name of the parameter.
        rank: process that holds the slice.
        norm: L2 norm found.
        expected_norm: L2 norm of the truth.
    """

    relative: float
    name: str
    rank: int
    norm: float
    expected_norm: float

    def __str__(self) -> str:
        return f"{self.relative:.1e} in {self.name}"


def compare_gradients(
    config: TrainConfig, engine: PipelineEngine, *, objective: ObjectiveFactory, device: torch.device
) -> Difference:
    """Compares the gradients of a fixed batch with one process's. A collective call; changes no weight.

    Args:
        config: the run; its initial weights must still be in the engine.
        engine: the engine of this layout.
        objective: makes the objective.
        device: where this process computes.

    Returns:
        The worst difference of any parameter on any process.

    Raises:
        EngineError: naming the worst parameter if it is beyond ``TOLERANCE``.
    """
    with engine.without_dropout():
        found = {
            name_of(parameter): (parameter, gradient)
            for parameter, gradient in engine.gradients(fixed_batch(config, engine.groups) if engine.needs_data else [])
        }
    world = engine.groups.world
    truth = _true_gradients(config, objective, device) if world.is_first else {}
    worst = Difference(0.0, "no parameter", 0, 0.0, 0.0)
    for name, expected in _broadcast(truth, world, device):
        if name in found:
            worst = max(worst, _difference(name, *found[name], expected, rank=world.rank))
    worst = max(world.gather(worst))
    if not worst.relative <= TOLERANCE[config.engine.precision]:
        raise EngineError(
            f"the gradient of {worst.name} on rank {worst.rank} at {engine.groups.topology} is not that of one "
            f"process: norm {worst.norm:.6g} instead of {worst.expected_norm:.6g}, relative difference "
            f"{worst.relative:.2g}, allowed {TOLERANCE[config.engine.precision]:.2g}. Training would be silently "
            "wrong; check the versions of deepspeed and torch, or set engine.truth_check=off if you know why."
        )
    return worst


def fixed_batch(config: TrainConfig, groups: ParallelGroups) -> list[Batch]:
    """This process's microbatches of a made-up global batch that is the same for every layout."""
    size, samples = config.engine.microbatch_samples, config.schedule.global_batch_samples
    length, vocabulary = config.data.sequence_length, config.model.vocab_size
    generator = torch.Generator().manual_seed(config.run.seed)
    tokens = torch.randint(vocabulary, (samples, length + 1), generator=generator)
    mask = (torch.rand(samples, length, generator=generator) < torch.rand(samples, 1, generator=generator)).float()
    mask[:, 0] = 1.0
    microbatches = []
    for first in range(groups.data.rank * size, samples, groups.data.size * size):
        rows = slice(first, first + size)
        sources = torch.zeros(size, dtype=torch.int64)
        microbatches.append(Batch(tokens[rows, :-1], tokens[rows, 1:], mask[rows], sources))
    return microbatches


def _true_gradients(config: TrainConfig, objective: ObjectiveFactory, device: torch.device) -> dict[str, Tensor]:
    """The gradients of the whole fixed batch in this process, by canonical name; fp32 on ``device``."""
    clock = DropoutClock(enabled=False)
    backend = choose_kernel(
        config.engine.attention,
        device_type=device.type,
        length=config.data.sequence_length,
        dropout=config.model.attention_dropout,
        precision=config.engine.precision,
    )
    options = BlockOptions(backend=backend, recompute=config.engine.recompute, clock=clock)
    single = AxisGroup.single()
    local = LocalEngine(
        family(config.model.family).plan(config.model, group=single, options=options),
        objective=objective(single, False),
        optimizer=config.optimizer,
        clock=clock,
        seed=config.run.seed,
        num_sources=1,
        device=device,
        dtype=weight_dtype(config.engine.precision),
    )
    local.accumulate(fixed_batch(config, ParallelGroups.single()))
    return local.gradients()


def _broadcast(truth: dict[str, Tensor], world: World, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Sends each full gradient from rank 0 to all, one at a time, in the order of the plan."""
    shapes = world.gather([(name, tuple(value.shape)) for name, value in truth.items()])[0]
    for name, shape in shapes:
        value = truth[name].contiguous() if truth else torch.empty(shape, device=device)
        yield name, broadcast_from_first(value)


def _difference(name: str, parameter: nn.Parameter, gradient: Tensor, expected: Tensor, *, rank: int) -> Difference:
    """Compares this process's slice of one gradient."""
    mine = shard_of(parameter).cut(expected)
    norm, expected_norm = float(gradient.float().norm()), float(mine.norm())
    difference = float((gradient.float() - mine).norm())
    # a slice whose true gradient vanishes (a vocabulary range that the batch never uses) is measured by the whole
    scale = max(expected_norm, 1e-2 * float(expected.norm()), 1e-12)
    relative = difference / scale
    return Difference(relative if relative == relative else float("inf"), name, rank, norm, expected_norm)
