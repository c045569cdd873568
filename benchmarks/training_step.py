"""A training step on a CPU, ours beside transformers': tokens per second, memory, share of a matrix product's speed.

Run from the checkout, on an idle machine: ``python -m benchmarks.training_step`` (options: ``--sequence 512 --batch 4
--precision bf16 --variants ...``). The model is a BLOOM of 8 layers, width 512, 8 heads and 32,000 ids. Each variant
lives in a process of its own, because how one process uses its memory changes what an allocator does for the next;
they take turns, some steps each, and medians over the turns are compared. All see the same kind of batches, keep fp32
masters and moments, clip the gradient at 1 and use fused AdamW; all flush denormal numbers and keep memory that was
freed, as ``poro train`` does, but for ``ours, memory given back``.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch import Tensor

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
from megatron_poro.metrics.throughput import step_flops
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.train.next_token import NextToken
from megatron_poro.units import format_bytes

LAYERS, HIDDEN, HEADS, VOCABULARY = 8, 512, 8, 32_000
LEARNING_RATE = 1e-4
BATCHES = 16

Step = Callable[[], float]


class Shape(NamedTuple):
    """What a step computes, and in which format."""

    sequence: int
    batch: int
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision is Precision.BF16 else torch.float32


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", type=Precision, default=Precision.BF16, choices=list(Precision))
    parser.add_argument("--variants", nargs="+", default=["ours", "transformers"], choices=VARIANTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of each variant in a round")
    arguments = parser.parse_args()
    shape = Shape(arguments.sequence, arguments.batch, arguments.precision)
    names: list[str] = arguments.variants
    workers = {name: _Worker(name, shape) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    products: list[float] = []
    for _ in range(arguments.rounds):
        products.append(_product_flops(shape.dtype))
        for name, worker in workers.items():
            seconds[name].append(worker.run(arguments.steps))
    print(f"{shape.precision.value}, batch {shape.batch} x {shape.sequence}, {torch.get_num_threads()} threads")
    print("| variant | tokens/s (slowest to fastest round) | times the last's | of a matrix product | peak memory |")
    print("|---|---|---|---|---|")
    tokens = shape.batch * shape.sequence
    last = seconds[names[-1]]
    for name, worker in workers.items():
        taken = seconds[name]
        ratio = statistics.median(theirs / ours for ours, theirs in zip(taken, last, strict=True))
        share = _flops(shape) / statistics.median(taken) / statistics.median(products)
        print(
            f"| {name} | {tokens / statistics.median(taken):,.0f} ({tokens / max(taken):,.0f} to "
            f"{tokens / min(taken):,.0f}) | {ratio:.2f} | {share:.2f} | {format_bytes(worker.end())} |",
            flush=True,
        )


class _Worker:
    """A variant in a process of its own, which takes steps when told to."""

    def __init__(self, name: str, shape: Shape) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        context.Process(target=_serve, args=(name, shape, theirs), daemon=True).start()
        theirs.close()
        self._pipe.recv()  # built and warm

    def run(self, steps: int) -> float:
        """Seconds of one of so many steps."""
        self._pipe.send(steps)
        seconds: float = self._pipe.recv()
        return seconds

    def end(self) -> int:
        """Ends the process; returns its peak resident memory in bytes."""
        self._pipe.send(0)
        peak: int = self._pipe.recv()
        return peak


def _serve(name: str, shape: Shape, pipe: Connection) -> None:
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    step = VARIANTS[name](shape)
    for _ in range(2):
        step()
    pipe.send(None)
    while steps := pipe.recv():
        began = time.perf_counter()
        for _ in range(steps):
            step()
        pipe.send((time.perf_counter() - began) / steps)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    pipe.send(1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]))


# --- variants --------------------------------------------------------------------------------------------------------


def _ours(shape: Shape, *, keeps: bool = True) -> Step:
    if keeps:
        keep_freed_memory()
    config = TrainConfig(
        run=RunSection(name="step", seed=7),
        model=BloomConfig(num_layers=LAYERS, hidden_size=HIDDEN, num_heads=HEADS, vocab_size=VOCABULARY),
        parallel=ParallelConfig(),
        engine=EngineConfig(
            kind=EngineKind.LOCAL, precision=shape.precision, microbatch_samples=shape.batch, recompute=Recompute.NONE
        ),
        data=DataConfig(sequence_length=shape.sequence),
        schedule=ScheduleConfig(total_tokens=1 << 40, global_batch_samples=shape.batch, learning_rate=LEARNING_RATE),
    )
    engine = build_engine(
        config, groups=ParallelGroups.single(), objective=NextToken, num_sources=1, device=torch.device("cpu")
    )
    mask, sources = torch.ones(shape.batch, shape.sequence), torch.zeros(shape.batch, dtype=torch.int64)
    batches = [Batch(tokens[:, :-1], tokens[:, 1:], mask, sources) for tokens in _tokens(shape)]
    taken = 0

    def step() -> float:
        nonlocal taken
        done = engine.train_step(
            [batches[taken % BATCHES]], learning_rate=LEARNING_RATE, consumed_samples=taken * shape.batch
        )
        taken += 1
        return float(done.loss)

    return step


def _transformers(shape: Shape, *, compiled: bool = False) -> Step:
    from transformers import BloomConfig as TheirConfig
    from transformers import BloomForCausalLM

    keep_freed_memory()
    config = TheirConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS, use_cache=False, dtype=shape.dtype
    )
    model = BloomForCausalLM(config).to(shape.dtype).train()
    weights = list(model.parameters())
    masters = [weight.detach().float().clone() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=LEARNING_RATE, fused=True)
    forward = torch.compile(model, dynamic=False) if compiled else model
    batches = _tokens(shape)
    taken = 0

    def step() -> float:
        nonlocal taken
        tokens = batches[taken % BATCHES]
        taken += 1
        # labels are the inputs: transformers shifts them, and predicts one token less
        loss = forward(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        loss.backward()
        with torch.no_grad():
            for master, weight in zip(masters, weights, strict=True):
                assert weight.grad is not None
                master.grad = weight.grad.float()
                weight.grad = None
            torch.nn.utils.clip_grad_norm_(masters, 1.0, foreach=True)
            optimizer.step()
            torch._foreach_copy_(weights, masters)
        for master in masters:
            master.grad = None
        return float(loss.detach())

    return step


VARIANTS: dict[str, Callable[[Shape], Step]] = {
    "ours": _ours,
    "ours, memory given back": partial(_ours, keeps=False),
    "transformers": _transformers,
    "transformers, compiled": partial(_transformers, compiled=True),
}


def _tokens(shape: Shape) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(VOCABULARY, (BATCHES, shape.batch, shape.sequence + 1), generator=generator))


def _flops(shape: Shape) -> float:
    """Of the model in one step, without recomputation."""
    return step_flops(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        vocab_size=VOCABULARY,
        sequence_length=shape.sequence,
        samples=shape.batch,
        recompute=Recompute.NONE,
    ).model


def _product_flops(dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the best of a few."""
    size = 2048
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return float(2 * size**3 / min(seconds))


if __name__ == "__main__":
    main()
