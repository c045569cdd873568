"""A step of this project as the benchmarks take it: a BLOOM of 8 layers, width 512 and 8 heads, on random tokens."""

import os
from dataclasses import dataclass

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.turns import Step
from megatron_poro.cli.host_memory import keep_freed_memory
from megatron_poro.config.data import DataConfig
from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import (
    EngineConfig,
    EngineKind,
    ParallelConfig,
    Precision,
    Recompute,
    RunSection,
    ScheduleConfig,
    TrainConfig,
)
from megatron_poro.data.batch import Batch
from megatron_poro.engine.build import build_engine
from megatron_poro.models.init import weight_dtype
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.topology import Topology
from megatron_poro.train.next_token import NextToken

LAYERS, HIDDEN, HEADS = 8, 512, 8
LEARNING_RATE = 1e-4
BATCHES = 16
"""Different ones, which come again after the last."""


@dataclass(frozen=True)
class Shape:
    """What a step computes, and in which format.

    Attributes:
        sequence: tokens of a sample.
        batch: samples of a microbatch.
        precision: format of weights and activations.
        vocabulary: ids.
        microbatches: of a step.
    """

    sequence: int
    batch: int
    precision: Precision
    vocabulary: int = 32_000
    microbatches: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """Torch's name of the format."""
        return weight_dtype(self.precision)

    @property
    def samples(self) -> int:
        """Samples of a step."""
        return self.batch * self.microbatches

    @property
    def tokens(self) -> int:
        """Tokens of a step; as many are predicted."""
        return self.samples * self.sequence


def token_batches(shape: Shape) -> list[Tensor]:
    """The samples of each step, with the token that follows the last one: int64 ``[b * microbatches, s + 1]``."""
    generator = torch.Generator().manual_seed(0)
    size = (BATCHES, shape.samples, shape.sequence + 1)
    return list(torch.randint(shape.vocabulary, size, generator=generator))


def microbatches(tokens: Tensor, shape: Shape) -> list[Batch]:
    """A step's samples as an engine takes them."""
    mask, sources = torch.ones(shape.batch, shape.sequence), torch.zeros(shape.batch, dtype=torch.int64)
    return [Batch(part[:, :-1], part[:, 1:], mask, sources) for part in tokens.chunk(shape.microbatches)]


def train_config(shape: Shape, kind: EngineKind, *, compiled: bool = False) -> TrainConfig:
    """The run that a step is taken of."""
    return TrainConfig(
        run=RunSection(name="step", seed=7),
        model=BloomConfig(num_layers=LAYERS, hidden_size=HIDDEN, num_heads=HEADS, vocab_size=shape.vocabulary),
        parallel=ParallelConfig(),
        engine=EngineConfig(
            kind=kind,
            precision=shape.precision,
            microbatch_samples=shape.batch,
            recompute=Recompute.NONE,
            compile=compiled,
        ),
        data=DataConfig(sequence_length=shape.sequence),
        schedule=ScheduleConfig(total_tokens=1 << 40, global_batch_samples=shape.samples, learning_rate=LEARNING_RATE),
    )


def our_step(shape: Shape, *, kind: EngineKind = EngineKind.LOCAL, keeps: bool = True, compiled: bool = False) -> Step:
    """A step in this process.

    Args:
        shape: what it computes.
        kind: which engine takes it; DeepSpeed's at 1 x 1 x 1.
        keeps: whether freed memory is kept, as ``poro train`` does on a CPU.
        compiled: whether its blocks are, as ``engine.compile=true`` has it.
    """
    if keeps:
        keep_freed_memory()
    groups = ParallelGroups.single()
    if kind is EngineKind.DEEPSPEED:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        groups = ParallelGroups.create(Topology())
    config = train_config(shape, kind, compiled=compiled)
    engine = build_engine(config, groups=groups, objective=NextToken, num_sources=1, device=torch.device("cpu"))
    batches = [microbatches(tokens, shape) for tokens in token_batches(shape)]
    taken = 0

    def step() -> float:
        nonlocal taken
        done = engine.train_step(
            batches[taken % BATCHES], learning_rate=LEARNING_RATE, consumed_samples=taken * shape.samples
        )
        taken += 1
        return float(done.loss)

    return step
