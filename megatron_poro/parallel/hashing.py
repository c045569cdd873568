"""A number that changes when any one bit of a tensor does; equal bits give equal numbers on any device."""

import torch
from torch import Tensor

_CHUNK_WORDS = 1 << 20
"""Words hashed at a time; bounds the memory used beside the tensor, does not change the result."""

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_hash(values: Tensor) -> Tensor:
    """Hash of a tensor's bits; scalar int64 on its device.

    The bits are read as whole numbers of 64 bits, each multiplied by an odd number of its own, and added up modulo
    2^64. A flipped bit adds a power of two times an odd number, which is never 0 modulo 2^64, so that one flip is
    always seen, and two on different places hardly ever cancel. All of it is exact arithmetic in any order.

    Args:
        values: any shape and format of 1 to 8 bytes.
    """
    flat = values.detach().reshape(-1)
    per_word = 8 // flat.element_size()
    if flat.storage_offset() % per_word:
        flat = flat.clone()  # words must begin where the memory is aligned
    whole = flat.numel() // per_word * per_word
    total = _weighted_sum(flat[:whole].view(torch.int64), first=0)
    rest = flat[whole:].view(_WORDS[flat.element_size()]).to(torch.int64)
    return total + _weighted_sum(rest, first=whole)


def _weighted_sum(words: Tensor, *, first: int) -> Tensor:
    """Sum of ``word * (2 * (first + position) + 1)`` modulo 2^64; scalar int64."""
    odd = 1 + 2 * torch.arange(min(words.numel(), _CHUNK_WORDS), dtype=torch.int64, device=words.device)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, words.numel(), _CHUNK_WORDS):
        chunk = words[start : start + _CHUNK_WORDS]
        total += (chunk * (odd[: chunk.numel()] + 2 * (first + start))).sum()
    return total
