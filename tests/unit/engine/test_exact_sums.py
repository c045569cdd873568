"""A reproducible step in one process: the true gradient, apart from the order of anything, and what it refuses."""

import math
import random

import pytest
import torch

from megatron_poro.config.run import AttentionBackend, EngineKind, OptimizerConfig, Precision
from megatron_poro.engine.engine import StepResult
from megatron_poro.engine.exact_sums import _power_of_two_below, _total
from megatron_poro.engine.local import LocalEngine
from megatron_poro.engine.optimizer import adamw, moments, prepare_state, set_learning_rate
from megatron_poro.errors import ConfigError
from megatron_poro.models import bloom
from megatron_poro.models.kernel_choice import choose_kernel
from megatron_poro.parallel import vocab
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.train.next_token import NextToken
from tests.support.tiny import full_values, make_engine, microbatches, tiny_config

SINGLE = ParallelGroups.single()


def local(*, reproducible: bool = True, precision: Precision = Precision.FP32) -> LocalEngine:
    engine = make_engine(tiny_config(kind=EngineKind.LOCAL, precision=precision, reproducible=reproducible))
    assert isinstance(engine, LocalEngine)
    return engine


def step(engine: LocalEngine, order: int | None = None, spoil: float | None = None) -> StepResult:
    """One step over the same microbatches, in an order of its own."""
    batches = microbatches(tiny_config(), 0, SINGLE)
    if order is not None:
        random.Random(order).shuffle(batches)
    if spoil is not None:
        batches[3].loss_mask[0, 0] = spoil
    return engine.train_step(batches, learning_rate=1e-2, consumed_samples=0)


@pytest.mark.parametrize("precision", list(Precision))
def test_the_order_of_microbatches_does_not_matter(precision: Precision) -> None:
    def trained(order: int, reproducible: bool) -> tuple[tuple[float, float, list[float]], list[torch.Tensor]]:
        engine = local(reproducible=reproducible, precision=precision)
        result = step(engine, order)
        shown = float(result.loss), float(result.grad_norm), result.source_loss_sums.tolist()
        return shown, list(full_values(engine).values())

    one, other = trained(1, True), trained(2, True)
    assert one[0] == other[0]
    assert all(map(torch.equal, one[1], other[1]))
    one, other = trained(1, False), trained(2, False)
    assert one[0] != other[0], "the batch is too easy: plain sums do not depend on its order"
    assert not all(map(torch.equal, one[1], other[1]))


def test_the_gradient_is_the_one_of_plain_sums() -> None:
    exact, plain = local(), local(reproducible=False)
    batches = microbatches(tiny_config(), 0, SINGLE)
    exact.accumulate(batches)
    plain.accumulate(batches)
    for name, gradient in plain.gradients().items():
        torch.testing.assert_close(exact.gradients()[name], gradient, rtol=2e-5, atol=1e-7)


def test_results_are_those_of_plain_sums() -> None:
    exact, plain = step(local()), step(local(reproducible=False))
    for found, expected in zip(exact[:4], plain[:4], strict=True):
        assert found.dtype is torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_step_whose_losses_are_no_numbers_changes_nothing(poison: float) -> None:
    engine = local()
    before = full_values(engine)
    assert not step(engine, spoil=poison).taken
    assert all(torch.equal(value, before[name]) for name, value in full_values(engine).items())
    assert step(engine).taken, "what one step left behind spoilt the next"


def test_a_gradient_beyond_what_can_be_added_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = NextToken.loss
    monkeypatch.setattr(NextToken, "loss", lambda *args: loss(*args)._replace(loss_sum=1e6 * loss(*args).loss_sum))
    engine = local()
    result = step(engine)
    assert math.isfinite(float(result.loss))
    assert math.isnan(float(result.grad_norm))
    assert not result.taken


def test_a_batch_without_loss_tokens_is_refused() -> None:
    engine = local()
    batches = microbatches(tiny_config(), 0, SINGLE)
    for batch in batches:
        batch.loss_mask.zero_()
    result = engine.train_step(batches, learning_rate=1e-2, consumed_samples=0)
    assert not result.taken
    assert math.isnan(float(result.loss))


def test_a_tied_weight_whose_two_uses_are_added_up_by_autograd_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bloom.vocab_parallel_head is vocab.vocab_parallel_head
    monkeypatch.setattr(vocab, "tied_use", lambda parameter: parameter)
    with pytest.raises(AssertionError, match="took it through tied_use"):
        step(local())


@pytest.mark.parametrize("weight", [1.0, 3.0, 4096.0, 4097.0, 1e-3, 4e6])
def test_the_seed_is_a_power_of_two_about_one_over_the_weight(weight: float) -> None:
    seed = _power_of_two_below(weight)
    assert math.frexp(seed)[0] == 0.5
    assert 0.5 <= seed * weight < 1.0


def test_totals_survive_what_is_no_number() -> None:
    assert _total([0.1] * 10) == 1.0
    assert math.isnan(_total([1.0, math.nan]))
    assert _total([1.0, math.inf]) == math.inf
    assert math.isnan(_total([math.inf, -math.inf]))
    assert math.isnan(_total([1e308, 1e308]))


def test_adamw_of_a_reproducible_run_rounds_alike_wherever_tensors_are_cut() -> None:
    """The masters of a bf16 run are cut at other places for each number of replicas."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 640, generator=generator) * torch.tensor([[0.1], [1e-3], [1e-3], [1e-3]])

    def updated(first: int, stop: int) -> list[torch.Tensor]:
        weight, gradient, average, root = (row[first:stop].clone() for row in values)
        parameter = torch.nn.Parameter(weight)
        parameter.grad = gradient
        config = OptimizerConfig()
        groups = [{"params": [parameter], "weight_decay": 0.1, "is_decayed": True}]
        optimizer = adamw(groups, config, reproducible=True)
        prepare_state(optimizer)
        for state, value in zip(moments(optimizer, parameter), (average, root.square()), strict=True):
            state.copy_(value)
        set_learning_rate(optimizer, 1e-3)
        optimizer.step()
        return [parameter.detach(), *moments(optimizer, parameter)]

    whole = updated(0, 640)
    for length in (1, 5, 33):
        pieces = zip(*(updated(i, min(i + length, 640)) for i in range(0, 640, length)), strict=True)
        for expected, piece in zip(whole, pieces, strict=True):
            assert torch.equal(torch.cat(piece), expected)


def test_on_a_gpu_only_attention_that_adds_in_a_fixed_order_is_used() -> None:
    def chosen(wanted: AttentionBackend, device_type: str) -> AttentionBackend:
        precision = Precision.BF16
        return choose_kernel(
            wanted, device_type=device_type, length=2048, dropout=0.0, precision=precision, reproducible=True
        )

    assert chosen(AttentionBackend.AUTO, "cuda") is AttentionBackend.EAGER
    assert chosen(AttentionBackend.FLASH, "cpu") is AttentionBackend.FLASH
    with pytest.raises(ConfigError, match=r"engine.attention=flash adds up in no fixed order on a GPU"):
        chosen(AttentionBackend.FLASH, "cuda")
