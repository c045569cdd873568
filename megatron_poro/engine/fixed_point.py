"""Sums that do not depend on the order of their terms, because they are sums of integers.

Adding floats rounds after every term, so another order gives other bits. Here each term is rounded once, to a multiple
of 2^-48, and added as a 64-bit integer, which is exact. Microbatches, replicas and the ends of a tied weight may then
come in any order and any grouping. Terms that are not finite, or so large that the sum could overflow, are counted
instead of added, and the whole sum of that tensor is NaN.

Source: reproducible summation by pre-rounding, Demmel and Nguyen 2013 (ARITH 21), with one fixed bin.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FRACTION_BITS = 48
"""Terms are rounded to multiples of 2^-48 = 3.6e-15, which leaves sums up to 2^14. From 3e-8 on, fp32 itself has no
finer steps."""

_LARGEST_SUM_BITS = 62

_REFUSED, _TAKEN_APART = 0, 1
"""Places behind a tensor's elements: how many terms were refused, how many came by :meth:`FixedPointSums.add_apart`."""


class FixedPointSums:
    """One sum for each of some tensors, in one buffer of int64, so that one reduction adds all of them over a group.

    Args:
        sizes: number of elements of each tensor.
        terms: largest number of terms of any sum, over all processes; decides how large a term may be.
        device: where the terms are.
    """

    def __init__(self, sizes: Sequence[int], *, terms: int, device: torch.device) -> None:
        self.largest_term = 2.0 ** (_LARGEST_SUM_BITS - FRACTION_BITS) / terms
        counters = 2
        self.buffer = torch.zeros(sum(sizes) + counters * len(sizes), dtype=torch.int64, device=device)
        self.parts = list(torch.split(self.buffer, [size + counters for size in sizes]))
        self._elements = [part[:-counters] for part in self.parts]
        self._counters = [part[-counters:] for part in self.parts]

    def clear(self) -> None:
        """Starts new sums."""
        self.buffer.zero_()

    @torch.no_grad()
    def add(self, index: int, term: Tensor) -> None:
        """Adds a term of any float format to sum number ``index``."""
        fits = term.abs().amax() <= self.largest_term  # false for NaN
        self._counters[index][_REFUSED] += ~fits
        scaled = term.reshape(-1).to(torch.float64).mul_(2.0**FRACTION_BITS).round_()
        # what does not fit would convert to anything
        self._elements[index] += scaled.to(torch.int64).mul_(fits)

    def add_apart(self, index: int, term: Tensor) -> None:
        """Adds a term and counts it."""
        self.add(index, term)
        self._counters[index][_TAKEN_APART] += 1

    def counts_apart(self) -> list[int]:
        """For each sum, how many terms came by :meth:`add_apart`."""
        return torch.stack([counters[_TAKEN_APART] for counters in self._counters]).tolist()

    @torch.no_grad()
    def write(self, index: int, out: Tensor, *, factor: float) -> None:
        """Writes a sum times ``factor`` into ``out``, worked out in fp64 and rounded once to the format of ``out``."""
        refused = self._counters[index][_REFUSED] > 0
        scale = torch.full((), factor * 2.0**-FRACTION_BITS, dtype=torch.float64, device=out.device)
        scale = scale.masked_fill(refused, float("nan"))
        out.copy_(self._elements[index].to(torch.float64).mul_(scale).view_as(out))
