"""Cross entropy in chunks of rows is that of all rows at once, and the logits' gradient needs no second buffer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_poro.parallel import vocab
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.vocab import vocab_parallel_cross_entropy
from megatron_poro.planning.moments import LOSS_CHUNK
from tests.support.ranks import run_ranks


def computed(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that a product made, their source and labels."""
    generator = torch.Generator().manual_seed(rows)
    source = torch.randn(rows, 37, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return (source * 3).view(1, rows, 37), source, torch.randint(37, (1, rows), generator=generator)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize("limit", [1, 2 * 37, 8 * 37, 1 << 20])
def test_chunks_give_the_bits_of_all_rows_at_once(monkeypatch: pytest.MonkeyPatch, rows: int, limit: int) -> None:
    found = []
    for elements in (1 << 30, limit):
        monkeypatch.setattr(vocab, "CHUNK_OF_A_CPU", elements)
        logits, source, labels = computed(rows)
        loss = vocab_parallel_cross_entropy(logits, labels, AxisGroup.single())
        loss.square().sum().backward()
        found.append((loss.detach(), source.grad))
    logits, source, labels = computed(rows)
    expected = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    expected.square().sum().backward()
    torch.testing.assert_close(found[1], (expected.detach(), source.grad))
    if limit > 37:  # a single row is summed in other steps
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def by_chunks_and_compiled(dtype: torch.dtype) -> list[tuple[Tensor, Tensor | None, bool]]:
    """Losses, the source's gradient, and whether the logits' gradient took their place."""
    found = []
    for compiles in (False, True):
        logits, source, labels = computed(9, dtype)
        seen: list[Tensor] = []
        logits.register_hook(seen.append)
        loss = vocab_parallel_cross_entropy(logits, labels, AxisGroup.single(), compiles=compiles)
        loss.square().sum().backward()
        found.append((loss.detach(), source.grad, seen[0].data_ptr() == logits.data_ptr()))
    return found


def test_a_compiled_loss_is_the_one_by_chunks_and_needs_no_second_buffer() -> None:
    both = run_ranks(lambda: [by_chunks_and_compiled(dtype) for dtype in (torch.float32, torch.bfloat16)], world=1)
    for chunked, compiled in both[0]:
        torch.testing.assert_close(compiled[:2], chunked[:2])
        assert chunked[2]
        assert compiled[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_takes_the_place_of_computed_logits(dtype: torch.dtype) -> None:
    logits, _, labels = computed(9, dtype)
    seen: list[Tensor] = []
    logits.register_hook(seen.append)
    vocab_parallel_cross_entropy(logits, labels, AxisGroup.single()).sum().backward()
    assert [gradient.data_ptr() for gradient in seen] == [logits.data_ptr()]


def test_logits_that_were_given_stay_as_they_are() -> None:
    logits = torch.randn(1, 5, 37, requires_grad=True)
    before = logits.detach().clone()
    vocab_parallel_cross_entropy(logits, torch.arange(5).view(1, 5), AxisGroup.single()).sum().backward()
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("make", [lambda wide: wide.transpose(0, 1), lambda wide: wide[:, 1:]], ids=["turned", "part"])
def test_logits_that_lie_apart_have_the_gradient_of_logits_in_a_row(make: Callable[[Tensor], Tensor]) -> None:
    found = []
    for lay in (make, lambda wide: make(wide).contiguous()):
        source = torch.randn(5, 3, 37, generator=torch.Generator().manual_seed(0)).requires_grad_()
        logits = lay(source * 3)
        labels = torch.arange(logits.shape[:2].numel()).view(logits.shape[:2])
        vocab_parallel_cross_entropy(logits, labels, AxisGroup.single()).square().sum().backward()
        found.append(source.grad)
    assert torch.equal(*found)


def test_logits_that_something_else_needs_are_not_lost_in_silence() -> None:
    logits, _, labels = computed(5)
    other = logits.square().sum()
    loss = vocab_parallel_cross_entropy(logits, labels, AxisGroup.single()).sum()
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()  # type: ignore[no-untyped-call]


def test_a_plan_knows_what_a_gpu_holds_in_fp32() -> None:
    assert vocab.CHUNK_OF_A_GPU == LOSS_CHUNK
