"""Attention kernels with ALiBi, forward and backward, in turn: milliseconds, and what the choice of ``auto`` rests on.

``python -m benchmarks.attention [--rounds N]``, on an idle machine. As in training queries, keys and values are parts
of one tensor, denormals are flushed and memory that was freed is kept. ``tiled`` is compiled, as where it is used.
"""

import argparse
import statistics
import time

import torch
import torch._dynamo.config
from torch import Tensor

from megatron_poro.cli.host_memory import keep_freed_memory
from megatron_poro.config.model import AlibiForm
from megatron_poro.config.run import AttentionBackend
from megatron_poro.models.alibi import Alibi
from megatron_poro.models.attention import attention
from megatron_poro.parallel.compiling import compiled
from megatron_poro.parallel.groups import AxisGroup

KERNELS = (AttentionBackend.EAGER, AttentionBackend.SDPA, AttentionBackend.FLASH, AttentionBackend.TILED)
SHAPES = ((4, 8, 128, 64), (4, 8, 256, 64), (4, 8, 512, 64), (2, 8, 1024, 64), (1, 8, 2048, 64), (1, 4, 2048, 128))
"""Batch, heads, length, head size."""


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_flush_denormal(True)
    keep_freed_memory()
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    print(f"{torch.get_num_threads()} threads")
    print(f"| format, [b, n, s, d] | {' | '.join(f'{kernel.value} ms' for kernel in KERNELS)} | eager / flash |")
    print(f"|---|{'---|' * (len(KERNELS) + 1)}")
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SHAPES:
            seconds = _race(shape, dtype, rounds)
            cells = " | ".join(f"{1e3 * seconds[kernel]:.1f}" for kernel in KERNELS)
            ratio = seconds[AttentionBackend.EAGER] / seconds[AttentionBackend.FLASH]
            print(f"| {str(dtype).removeprefix('torch.')} {list(shape)} | {cells} | {ratio:.2f} |", flush=True)


def _race(shape: tuple[int, int, int, int], dtype: torch.dtype, rounds: int) -> dict[AttentionBackend, float]:
    """Median seconds of each kernel; the first round warms up."""
    torch.compiler.reset()  # the compiler gives up on a function after so many shapes, and goes on uncompiled
    batch, heads, length, size = shape
    packed = torch.randn(batch, length, heads, 3, size, dtype=dtype, requires_grad=True)
    gradient = torch.randn(shape, dtype=dtype)
    alibi = Alibi(heads, form=AlibiForm.DISTANCE, group=AxisGroup.single())
    seconds: dict[AttentionBackend, list[float]] = {kernel: [] for kernel in KERNELS}
    for _ in range(rounds + 1):
        for kernel in KERNELS:
            began = time.perf_counter()
            query, keys, values = packed.permute(3, 0, 2, 1, 4)
            compute = compiled(attention) if kernel is AttentionBackend.TILED else attention
            attended: Tensor = compute(query, keys, values, alibi, backend=kernel)
            torch.autograd.grad(attended, packed, gradient)
            seconds[kernel].append(time.perf_counter() - began)
    return {kernel: statistics.median(taken[1:]) for kernel, taken in seconds.items()}


if __name__ == "__main__":
    main()
