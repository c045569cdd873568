"""The hash of a tensor's bits sees any one bit, and nothing but bits."""

import pytest
import torch

from megatron_poro.parallel import hashing
from megatron_poro.parallel.hashing import bit_hash

INTEGER = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


@pytest.mark.parametrize("dtype", list(INTEGER))
@pytest.mark.parametrize("length", [1, 3, 7, 64])
def test_every_single_flipped_bit_changes_the_hash(dtype: torch.dtype, length: int) -> None:
    values = torch.randn(length, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = bit_hash(values)
    bits = values.element_size() * 8
    for position in range(length):
        for bit in range(bits):
            flipped = values.clone()
            flipped.view(INTEGER[dtype])[position] ^= (1 << bit) if bit < bits - 1 else -(1 << bit)
            assert bit_hash(flipped) != before, (position, bit)


def test_exchanged_values_change_the_hash() -> None:
    assert bit_hash(torch.tensor([1.0, 2.0, 3.0, 4.0])) != bit_hash(torch.tensor([2.0, 1.0, 3.0, 4.0]))


def test_signs_of_zero_and_kinds_of_nan_are_bits_too() -> None:
    assert bit_hash(torch.tensor([0.0])) != bit_hash(torch.tensor([-0.0]))
    assert bit_hash(torch.tensor([float("nan")])) == bit_hash(torch.tensor([float("nan")]))


@pytest.mark.parametrize("dtype", list(INTEGER))
def test_hash_does_not_depend_on_where_the_values_lie(dtype: torch.dtype) -> None:
    storage = torch.randn(100).to(dtype)
    for first in range(8):
        part = storage[first : first + 51]
        assert bit_hash(part) == bit_hash(part.clone())


def test_hash_does_not_depend_on_the_size_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(1000)
    whole = bit_hash(values)
    monkeypatch.setattr(hashing, "_CHUNK_WORDS", 7)
    assert bit_hash(values) == whole


def test_nothing_has_a_hash() -> None:
    assert bit_hash(torch.zeros(0)) == 0
