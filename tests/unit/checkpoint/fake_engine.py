"""An engine that holds numbers instead of a model: one process's fragments at any layout, without computing anything.

It cuts as the real one does. A stage holds some layers, a tensor rank holds slices of them, and the stage's flat vector
is dealt to the data ranks in equal parts wherever the cuts fall. Sizes are odd on purpose.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_poro.checkpoint.state import RunState
from megatron_poro.config.data import DataConfig, SourceConfig
from megatron_poro.config.identity import identity
from megatron_poro.config.load import to_yaml
from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import RunSection, ScheduleConfig, TokenizerConfig, TrainConfig
from megatron_poro.data.batch import Batch
from megatron_poro.engine.engine import EvalResult, Fragment, FragmentKind, StepResult
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.shards import ShardSpec
from megatron_poro.parallel.topology import Topology

# name: full shape, dim that is cut over the tensor group; in order of layers
LAYERS: tuple[dict[str, tuple[tuple[int, ...], int | None]], ...] = (
    {"embedding.weight": ((20, 7), 0)},
    {"embedding_norm.weight": ((7,), None), "embedding_norm.bias": ((7,), None)},
    {"blocks.0.up.weight": ((12, 7), 0), "blocks.0.up.bias": ((12,), 0), "blocks.0.down.weight": ((7, 12), 1)},
    {"blocks.1.up.weight": ((12, 7), 0), "blocks.1.cube": ((3, 4, 5), 1), "blocks.1.scale": ((), None)},
    {"final_norm.weight": ((7,), None)},
    {"embedding.weight": ((20, 7), 0)},  # the tied head
)


def full_tensor(kind: FragmentKind, name: str, shape: tuple[int, ...], salt: str = "") -> Tensor:
    """The value that every layout must agree on."""
    seed = int.from_bytes(hashlib.sha256(f"{salt}{kind.value}.{name}".encode()).digest()[:7], "little")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class IdleEngine:
    """The part of an engine that a checkpoint has no use for."""

    groups: ParallelGroups
    needs_data = False

    def train_step(self, microbatches: Sequence[Batch], *, learning_rate: float, consumed_samples: int) -> StepResult:
        raise NotImplementedError

    def eval_step(self, microbatches: Sequence[Batch]) -> EvalResult:
        raise NotImplementedError


class FakeEngine(IdleEngine):
    """One process's part of :data:`LAYERS`, filled with :func:`full_tensor`, or with NaN to be loaded into."""

    def __init__(self, groups: ParallelGroups | None = None, *, filled: bool = True, salt: str = "") -> None:
        self.groups = groups or ParallelGroups.single()
        self.loaded_step: int | None = None
        self._fragments = list(self._cut(filled, salt))

    def fragments(self) -> Iterator[Fragment]:
        yield from self._fragments

    def load_finished(self, optimizer_step: int) -> None:
        self.loaded_step = optimizer_step

    def wrong_fragments(self, salt: str = "") -> list[str]:
        """What does not hold bit for bit the values it should."""
        wrong = []
        for fragment in self._fragments:
            full = full_tensor(fragment.kind, fragment.name, fragment.shard.full_shape, salt)
            wanted = fragment.shard.cut(full).reshape(-1)[fragment.start : fragment.start + fragment.flat.numel()]
            if not torch.equal(fragment.flat, wanted):
                wrong.append(f"{fragment.kind.value}.{fragment.name}[{fragment.start}:]")
        return wrong

    def _cut(self, filled: bool, salt: str) -> Iterator[Fragment]:
        topology, at = self.groups.topology, self.groups.coordinate
        bounds = [len(LAYERS) * stage // topology.pipeline for stage in range(topology.pipeline + 1)]
        stage = dict(item for layer in LAYERS[bounds[at.pipeline] : bounds[at.pipeline + 1]] for item in layer.items())
        for kind in FragmentKind:
            shards = {
                name: ShardSpec(
                    shape, dim, at.tensor if dim is not None else 0, topology.tensor if dim is not None else 1
                )
                for name, (shape, dim) in stage.items()
            }
            part = -(-sum(math.prod(shard.shape) for shard in shards.values()) // topology.data)
            low, high = part * at.data, part * (at.data + 1)
            begin = 0
            for name, shard in shards.items():
                size = math.prod(shard.shape)
                start, stop = max(low, begin) - begin, min(high, begin + size) - begin
                begin += size
                if start >= stop:
                    continue
                values = shard.cut(full_tensor(kind, name, shard.full_shape, salt)).reshape(-1)[start:stop]
                flat = values.clone() if filled else torch.full((stop - start,), math.nan)
                copy = name == "embedding.weight" and at.pipeline > 0
                replica = shard.dim is None and at.tensor > 0
                yield Fragment(name, kind, flat, start, shard, is_owner=not (copy or replica))


CONFIG = TrainConfig(
    run=RunSection(name="fake", seed=7),
    model=BloomConfig(num_layers=2, hidden_size=8, num_heads=2, vocab_size=20),
    data=DataConfig(
        sequence_length=16, train=[SourceConfig(name="one", path="data/one", weight=1.0)], index_cache="cache"
    ),
    schedule=ScheduleConfig(total_tokens=6400, global_batch_samples=4, learning_rate=1e-3),
    tokenizer=TokenizerConfig(path="tokenizer"),
)
_YAML = to_yaml(CONFIG)


def run_state(step: int, *, milestone: str | None = None, topology: Topology | None = None) -> RunState:
    """The state of a run after some steps."""
    return RunState(
        step=step,
        consumed_samples=4 * step,
        consumed_tokens=64 * step,
        optimizer_step=step,
        config=_YAML,
        identity=identity(CONFIG),
        topology=topology or Topology(),
        tokenizer_fingerprint="ab" * 32,
        milestone=milestone,
        check_loss=3.25,
        versions={"torch": "2.13.0"},
        created="2026-01-01T00:00:00+00:00",
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
