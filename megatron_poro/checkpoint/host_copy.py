"""A copy of what this process saves, on the host: training changes the original while the copy is written."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from megatron_poro.engine.engine import Fragment


class HostCopy:
    """Host memory for one copy; allocated by the first and used again by every later one.

    It takes 12 bytes for each parameter this process owns. Beside a GPU it is page-locked, which is what lets copies
    run at the speed of the bus.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, str, int], Tensor] = {}

    def take(self, fragments: Iterable[Fragment]) -> list[Fragment]:
        """Copies fragments; valid until the next call. When it returns, the originals may change."""
        copies = []
        device: torch.device | None = None
        for fragment in fragments:
            memory = self._memory_for(fragment)
            memory.copy_(fragment.flat, non_blocking=True)
            device = fragment.flat.device if fragment.flat.is_cuda else device
            copies.append(dataclasses.replace(fragment, flat=memory))
        if device is not None:
            torch.cuda.synchronize(device)
        return copies

    def _memory_for(self, fragment: Fragment) -> Tensor:
        key = (fragment.kind.value, fragment.name, fragment.start)
        memory = self._memory.get(key)
        if memory is None or memory.shape != fragment.flat.shape:
            memory = torch.empty(fragment.flat.shape, dtype=fragment.flat.dtype, pin_memory=fragment.flat.is_cuda)
            self._memory[key] = memory
        return memory
