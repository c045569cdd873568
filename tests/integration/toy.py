"""A run small enough to train in under a second: corpora, tokenizer, and the command line that trains on them."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.cli.train import main
from megatron_poro.data.indexed_writer import IndexedWriter
from megatron_poro.engine.engine import FragmentKind
from megatron_poro.metrics import names
from megatron_poro.tokenizer.bytes import byte_tokenizer
from tests.support.ranks import free_port, run_ranks

STEPS = 8
SEQUENCE = 16
BATCH = 8
TOKENS_PER_STEP = SEQUENCE * BATCH

TEXTS = {
    "finnish": "Suomen kieli on kaunis, ja revontulet palavat pohjoisessa taivaalla. " * 30,
    "code": "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n" * 30,
}


@dataclass(frozen=True)
class ToyCorpora:
    """Where the toy corpora and their tokenizer are."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "ToyCorpora":
        """Writes them."""
        tokenizer = byte_tokenizer()
        tokenizer.save(folder / "tokenizer")
        for name, text in TEXTS.items():
            for part in ("train", "validation"):
                with IndexedWriter(folder / f"{name}.{part}", vocab_size=tokenizer.vocab_size) as writer:
                    for line in text.split(". " if name == "finnish" else "\n"):
                        writer.append([*tokenizer.encode(line + part[0]), tokenizer.eos_id])
        return cls(folder)

    def arguments(self, root: Path, *changes: str, name: str = "toy") -> list[str]:
        """A command line that trains the toy run below ``root``, with ``changes`` at its end."""

        def mixture(part: str) -> str:
            weights = {"finnish": 0.75, "code": 0.25}
            sources = (f'{{name:{n},path:"{self.folder / n}.{part}",weight:{w}}}' for n, w in weights.items())
            return f"[{','.join(sources)}]"

        return [
            f"run.name={name}",
            f"run.root={root}",
            "engine=local",
            "engine.precision=fp32",
            "engine.microbatch_samples=2",
            "model.num_layers=2",
            "model.hidden_size=32",
            "model.num_heads=4",
            "model.vocab_size=280",
            f"data.folder={self.folder}",
            f"data.sequence_length={SEQUENCE}",
            f"data.train={mixture('train')}",
            f"data.validation={mixture('validation')}",
            f"tokenizer.path={self.folder / 'tokenizer'}",
            f"schedule.total_tokens={STEPS * TOKENS_PER_STEP}",
            f"schedule.global_batch_samples={BATCH}",
            "schedule.learning_rate=1e-2",
            f"schedule.warmup_tokens={2 * TOKENS_PER_STEP}",
            "validation.every_steps=0",
            "validation.samples=12",
            "checkpoint.every_steps=0",
            "export.every_tokens=0",
            *changes,
        ]


class RunOnDisk:
    """What a run left behind."""

    def __init__(self, root: Path, name: str = "toy") -> None:
        self.folder = root / name
        self.store = CheckpointStore(self.folder / "checkpoints")

    def lines(self) -> list[dict[str, Any]]:
        """The metrics, one dict per line."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def curve(self) -> list[tuple[Any, ...]]:
        """All that a step's numbers say of the computation: step, tokens, loss, gradient norm, losses per source."""
        source_losses = [names.SOURCE_LOSS.of(source) for source in TEXTS]
        keys = (names.STEP.key, names.TOKENS.key, names.LEARNING_RATE.key, names.LOSS.key, names.GRAD_NORM.key)
        return [tuple(line.get(key) for key in (*keys, *source_losses)) for line in self.lines()]

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(self.store.steps())

    def values(self, step: int) -> dict[tuple[FragmentKind, str], Tensor]:
        """Every master and moment of a checkpoint."""
        reader = CheckpointReader(self.store.path(step))
        return {(kind, name): reader.tensor(name, kind) for kind, name in reader.tensors}


def assert_same_values(left: RunOnDisk, right: RunOnDisk, step: int) -> None:
    """Masters and moments of two runs agree bit for bit at a step."""
    one, other = left.values(step), right.values(step)
    assert one.keys() == other.keys()
    assert one
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different, f"differ at step {step}: {different}"


def launch(arguments: Sequence[str], *, world: int) -> list[int]:
    """Runs ``poro train`` in several processes, as a launcher would start them; their exit codes in rank order."""
    codes: list[int] = run_ranks(_launched, list(arguments), free_port(), world=world)
    return codes


def _launched(arguments: list[str], port: int) -> int:
    """One process: leaves the group of the test and meets the others again the way a command does."""
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)
    code = main(arguments)
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)  # for run_ranks to take down
    return int(code)
