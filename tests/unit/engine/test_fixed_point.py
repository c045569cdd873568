"""Sums of integers: the same bits in any order, exact as far as fp64 can tell, NaN where a term cannot be added."""

import math

import pytest
import torch
from torch import Tensor

from megatron_poro.engine.fixed_point import FRACTION_BITS, FixedPointSums

CPU = torch.device("cpu")


def terms(count: int = 300, size: int = 50) -> list[Tensor]:
    """Floats whose sizes are eight orders of magnitude apart, so that adding them in fp32 depends on the order."""
    generator = torch.Generator().manual_seed(3)
    sizes = 10.0 ** torch.empty(count, size).uniform_(-7, 1, generator=generator)
    return list(torch.randn(count, size, generator=generator) * sizes)


def summed(values: list[Tensor], *, factor: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    sums = FixedPointSums([values[0].numel()], terms=len(values), device=CPU)
    for value in values:
        sums.add(0, value)
    out = torch.empty(values[0].shape, dtype=dtype)
    sums.write(0, out, factor=factor)
    return out


def test_any_order_and_any_grouping_give_the_same_bits() -> None:
    values = [value * 0.1 for value in terms()]
    expected = summed(values)
    assert torch.equal(summed(values[::-1]), expected)
    assert not torch.equal(sum(values[::-1]), sum(values)), (
        "the terms are too easy: fp32 adds them alike in both orders"
    )
    halves = [FixedPointSums([50], terms=300, device=CPU) for _ in range(2)]
    for index, value in enumerate(values):
        halves[index % 2].add(0, value)
    halves[0].buffer += halves[1].buffer
    out = torch.empty(50)
    halves[0].write(0, out, factor=1.0)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_is_the_true_one(dtype: torch.dtype) -> None:
    values = [(value * 0.1).to(dtype) for value in terms()]
    truth = torch.tensor([math.fsum(float(value[i]) for value in values) for i in range(50)], dtype=torch.float64)
    found = summed(values, dtype=torch.float64)
    assert float((found - truth).abs().max()) <= len(values) * 2.0 ** -(FRACTION_BITS + 1)
    assert torch.equal(summed(values, factor=0.37), (found * 0.37).float())


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 16.1, -1e30])
def test_a_term_that_cannot_be_added_makes_its_whole_tensor_nan_and_no_other(poison: float) -> None:
    sums = FixedPointSums([3, 2], terms=1024, device=CPU)
    assert sums.largest_term == 16.0
    sums.add(0, torch.tensor([1.0, poison, 2.0]))
    sums.add(0, torch.ones(3))
    sums.add(1, torch.full((2,), 16.0))
    first, second = torch.empty(3), torch.empty(2)
    sums.write(0, first, factor=1.0)
    sums.write(1, second, factor=1.0)
    assert bool(first.isnan().all())
    assert second.tolist() == [16.0, 16.0]
    sums.clear()
    sums.write(0, first, factor=1.0)
    assert first.tolist() == [0.0, 0.0, 0.0]


def test_as_many_of_the_largest_terms_as_there_may_be_do_not_overflow() -> None:
    sums = FixedPointSums([1], terms=7, device=CPU)
    for _ in range(7):
        sums.add(0, torch.tensor([sums.largest_term], dtype=torch.float64))
    out = torch.empty(1, dtype=torch.float64)
    sums.write(0, out, factor=1.0)
    assert float(out) == pytest.approx(2.0**14, rel=1e-12)
