"""Device memory, as far as the device can tell."""

from collections.abc import Callable

import torch


def peak_memory_probe(device: torch.device) -> Callable[[], int | None]:
    """A function that returns the most bytes torch held on the device so far, or ``None`` where it does not count.

    Only GPUs count (CUDA and ROCm); it is this process's device alone.
    """
    if device.type != "cuda":
        return lambda: None
    return lambda: torch.cuda.max_memory_allocated(device)
