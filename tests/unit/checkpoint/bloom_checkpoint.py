"""A small BLOOM in a checkpoint: odd sizes, a head count that is no power of two, values that need rounding."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.state import RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.identity import identity
from megatron_poro.config.load import to_yaml
from megatron_poro.config.model import AlibiForm, BloomConfig
from megatron_poro.config.run import EngineConfig, ExportConfig, Precision
from megatron_poro.engine.engine import Fragment, FragmentKind
from megatron_poro.models.causal_lm import whole_model
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.shards import shard_of
from megatron_poro.tokenizer.bytes import byte_tokenizer
from tests.unit.checkpoint.fake_engine import CONFIG, IdleEngine, run_state

MODEL = BloomConfig(num_layers=2, hidden_size=56, num_heads=7, vocab_size=281)
TOKENIZER = byte_tokenizer()


class BloomEngine(IdleEngine):
    """Holds the masters of a model, and moments of ones; trains nothing."""

    def __init__(self, model: BloomConfig = MODEL) -> None:
        self.groups = ParallelGroups.single()
        self.model = whole_model(model, seed=3)
        generator = torch.Generator().manual_seed(5)
        for parameter in self.model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)

    def fragments(self) -> Iterator[Fragment]:
        for name, parameter in self.model.named_parameters():
            for kind in FragmentKind:
                values = parameter.data if kind is FragmentKind.MASTER else torch.ones_like(parameter)
                yield Fragment(name, kind, values.view(-1), 0, shard_of(parameter), is_owner=True)

    def load_finished(self, optimizer_step: int) -> None:
        raise NotImplementedError


def bloom_state(
    step: int,
    *,
    milestone: str | None = None,
    model: BloomConfig = MODEL,
    precision: Precision = Precision.BF16,
    export: ExportConfig | None = None,
) -> RunState:
    config = replace(CONFIG, model=model, engine=EngineConfig(precision=precision), export=export or ExportConfig())
    return replace(
        run_state(step, milestone=milestone),
        config=to_yaml(config),
        identity=identity(config),
        tokenizer_fingerprint=TOKENIZER.fingerprint,
    )


def save_bloom(
    folder: Path,
    step: int = 5,
    *,
    milestone: str | None = None,
    alibi: AlibiForm = AlibiForm.DISTANCE,
    precision: Precision = Precision.BF16,
    export: ExportConfig | None = None,
) -> Path:
    """Saves :data:`MODEL` into a folder of checkpoints; returns the step folder."""
    model = replace(MODEL, alibi=alibi)
    state = bloom_state(step, milestone=milestone, model=model, precision=precision, export=export)
    return save(CheckpointStore(folder, keep_last=100), BloomEngine(model), state, tokenizer=TOKENIZER)
