"""A model small enough to train on any layout in a blink, batches for it, and runs of it at a layout."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_poro.config.data import DataConfig
from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import (
    AttentionBackend,
    EngineConfig,
    EngineKind,
    ParallelConfig,
    PipelineSchedule,
    Precision,
    Recompute,
    RunSection,
    ScheduleConfig,
    TrainConfig,
)
from megatron_poro.data.batch import Batch
from megatron_poro.engine.build import build_engine
from megatron_poro.engine.engine import Engine, FragmentKind
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.topology import Topology
from megatron_poro.train.next_token import NextToken

CPU = torch.device("cpu")

TINY = BloomConfig(num_layers=4, hidden_size=32, num_heads=4, vocab_size=64, init_std=0.05)


def tiny_config(
    *,
    kind: EngineKind = EngineKind.DEEPSPEED,
    precision: Precision = Precision.FP32,
    pipeline_schedule: PipelineSchedule = PipelineSchedule.ONE_F_ONE_B,
    recompute: Recompute = Recompute.NONE,
    recompute_blocks: list[int] | None = None,
    attention: AttentionBackend = AttentionBackend.EAGER,
    global_batch: int = 16,
    microbatch: int = 1,
    reproducible: bool = False,
    sequence: bool = False,
    compiled: bool = False,
    deferred: int | None = None,
    **model: Any,
) -> TrainConfig:
    """A whole config for the tiny model; what the engine does not read is left out."""
    return TrainConfig(
        run=RunSection(name="tiny", seed=7),
        model=replace(TINY, **model),
        parallel=ParallelConfig(sequence=sequence),
        engine=EngineConfig(
            kind=kind,
            precision=precision,
            pipeline_schedule=pipeline_schedule,
            recompute=recompute,
            recompute_blocks=recompute_blocks,
            attention=attention,
            microbatch_samples=microbatch,
            reproducible=reproducible,
            compile=compiled,
            deferred_weight_gradients=deferred,
        ),
        data=DataConfig(sequence_length=16),
        schedule=ScheduleConfig(total_tokens=16 * 16 * 100, global_batch_samples=global_batch, learning_rate=1e-2),
    )


def microbatches(config: TrainConfig, step: int, groups: ParallelGroups) -> list[Batch]:
    """This process's microbatches of a step: the same global batch for every layout, with an uneven loss mask.

    Tokens follow one another by a fixed rule that a model can learn; sample i belongs to source i mod 2.
    """
    samples, size = config.schedule.global_batch_samples, config.engine.microbatch_samples
    length, vocabulary = config.data.sequence_length, config.model.vocab_size
    generator = torch.Generator().manual_seed(1000 + step)
    start = torch.randint(vocabulary, (samples, 1), generator=generator)
    tokens = (start + 3 * torch.arange(length + 1)) % vocabulary
    mask = (torch.rand(samples, length, generator=generator) < torch.rand(samples, 1, generator=generator)).float()
    mask[:, -1] = 1.0
    rows = [slice(i, i + size) for i in range(groups.data.rank * size, samples, groups.data.size * size)]
    sources = torch.arange(samples) % 2
    return [Batch(tokens[r, :-1], tokens[r, 1:], mask[r], sources[r]) for r in rows]


class Trained(NamedTuple):
    """What a run of some steps did: per step loss and gradient norm, and all fp32 values at the end (rank 0 only)."""

    losses: list[float]
    norms: list[float]
    source_losses: list[list[float]]
    validation: list[float]
    values: dict[str, Tensor]


def make_engine(config: TrainConfig, topology: Topology = Topology()) -> Engine:  # noqa: B008  (a frozen value)
    """An engine of the tiny model at a layout; collective."""
    groups = ParallelGroups.create(topology)
    return build_engine(config, groups=groups, objective=NextToken, num_sources=2, device=CPU)


def train(config: TrainConfig, topology: Topology = Topology(), *, steps: int = 3) -> Trained:  # noqa: B008
    """Trains some steps at a layout and evaluates once; collective."""
    engine = make_engine(config, topology)
    done = run_steps(engine, config, range(steps))
    evaluated = engine.eval_step(microbatches(config, 10_000, engine.groups) if engine.needs_data else [])
    validation = [float(v) for v in evaluated.source_loss_sums / evaluated.source_weights]
    return Trained(*done, validation, full_values(engine))


def run_steps(engine: Engine, config: TrainConfig, steps: range) -> tuple[list[float], list[float], list[list[float]]]:
    """Losses, gradient norms and losses per source of some steps."""
    losses, norms, sources = [], [], []
    for step in steps:
        result = engine.train_step(
            microbatches(config, step, engine.groups) if engine.needs_data else [],
            learning_rate=config.schedule.learning_rate,
            consumed_samples=step * config.schedule.global_batch_samples,
        )
        losses.append(float(result.loss))
        norms.append(float(result.grad_norm))
        sources.append([float(v) for v in result.source_loss_sums / result.source_weights])
    return losses, norms, sources


def full_values(engine: Engine) -> dict[str, Tensor]:
    """Every fp32 value of the model as a full tensor, put together from all processes' fragments; on rank 0.

    Fails if an element has no owner or two.
    """
    mine = [(f"{f.kind.value}.{f.name}", f.flat.clone(), f.start, f.shard) for f in engine.fragments() if f.is_owner]
    everyone = [mine]
    if dist.is_initialized() and dist.get_world_size() > 1:
        everyone = [mine] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        if dist.get_rank() != 0:
            return {}
    full: dict[str, Tensor] = {}
    owners: dict[str, Tensor] = {}
    for key, flat, start, shard in (piece for pieces in everyone for piece in pieces):
        values = full.setdefault(key, torch.full(shard.full_shape, math.nan))
        counts = owners.setdefault(key, torch.zeros(shard.full_shape))
        # through a contiguous copy of the shard: a slice of the full tensor has no flat view
        for whole, piece in ((values, flat), (counts, torch.ones_like(flat))):
            part = shard.cut(whole).clone().view(-1)
            part[start : start + flat.numel()] = piece if whole is values else part[start : start + flat.numel()] + 1
            shard.cut(whole).copy_(part.view(shard.shape))
    assert all(bool((count == 1).all()) for count in owners.values()), "an element has no owner, or more than one"
    return full


def masters(trained: Trained) -> dict[str, Tensor]:
    """The weights among the values of a run."""
    prefix = f"{FragmentKind.MASTER.value}."
    return {name.removeprefix(prefix): v for name, v in trained.values.items() if name.startswith(prefix)}
