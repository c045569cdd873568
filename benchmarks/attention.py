"""Attention kernels with ALiBi, forward and backward, in turn: milliseconds of CPU time and the ratio to eager.

``python -m benchmarks.attention [--rounds N]``. One thread, denormals flushed as in training.
"""

import argparse
import statistics
import time

import torch

from megatron_poro.config.model import AlibiForm
from megatron_poro.config.run import AttentionBackend
from megatron_poro.models.alibi import Alibi
from megatron_poro.models.attention import attention
from megatron_poro.parallel.groups import AxisGroup

KERNELS = (AttentionBackend.EAGER, AttentionBackend.SDPA, AttentionBackend.FLASH)
SHAPES = ((4, 8, 128, 64), (4, 8, 256, 64), (4, 8, 512, 64), (2, 8, 1024, 64), (1, 8, 2048, 64), (1, 4, 2048, 128))
"""Batch, heads, length, head size."""


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    print(f"| format, [b, n, s, d] | {' | '.join(f'{kernel.value} ms' for kernel in KERNELS)} | sdpa / flash |")
    print(f"|---|{'---|' * (len(KERNELS) + 1)}")
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SHAPES:
            seconds = _race(shape, dtype, rounds)
            cells = " | ".join(f"{1e3 * seconds[kernel]:.1f}" for kernel in KERNELS)
            ratio = seconds[AttentionBackend.SDPA] / seconds[AttentionBackend.FLASH]
            print(f"| {str(dtype).removeprefix('torch.')} {list(shape)} | {cells} | {ratio:.2f} |", flush=True)


def _race(shape: tuple[int, int, int, int], dtype: torch.dtype, rounds: int) -> dict[AttentionBackend, float]:
    """Median CPU seconds of each kernel; the first round warms up."""
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
    gradient = torch.randn(shape, dtype=dtype)
    alibi = Alibi(shape[1], form=AlibiForm.DISTANCE, group=AxisGroup.single())
    seconds: dict[AttentionBackend, list[float]] = {kernel: [] for kernel in KERNELS}
    for _ in range(rounds + 1):
        for kernel in KERNELS:
            began = time.process_time()
            torch.autograd.grad(attention(*inputs, alibi, backend=kernel), inputs, gradient)
            seconds[kernel].append(time.process_time() - began)
    return {kernel: statistics.median(taken[1:]) for kernel, taken in seconds.items()}


if __name__ == "__main__":
    main()
