"""Weight gradients that wait: the same bits as at once, pass by pass, of layers whose input has a gradient."""

import pytest
import torch
from torch import Tensor, nn

from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.linear import ColumnParallelLinear, RowParallelLinear
from megatron_poro.parallel.ties import receive_apart
from megatron_poro.parallel.vocab import VocabParallelEmbedding, vocab_parallel_head
from megatron_poro.parallel.weight_gradients import DeferredWeightGradients, defer_weight_gradients

ALONE = AxisGroup.single()


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers(dtype: torch.dtype) -> nn.Sequential:
    made = nn.Sequential(
        ColumnParallelLinear(6, 8, group=ALONE, init_std=1.0), RowParallelLinear(8, 6, group=ALONE, init_std=1.0)
    )
    for seed, parameter in enumerate(made.parameters()):
        parameter.data.copy_(numbers(*parameter.shape, seed=seed))
    return made.to(dtype)


def back(module: nn.Module, microbatch: int, dtype: torch.dtype) -> Tensor:
    """A forward and a backward pass; the gradient of the input."""
    inputs = numbers(2, 5, 6, seed=100 + microbatch).to(dtype).requires_grad_()
    module(inputs).square().sum().backward()
    assert inputs.grad is not None
    return inputs.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_those_of_backward_passes_to_the_last_bit(dtype: torch.dtype) -> None:
    plain, waiting, deferred = layers(dtype), layers(dtype), DeferredWeightGradients()
    defer_weight_gradients(waiting, deferred)
    for microbatch in range(3):
        assert torch.equal(back(waiting, microbatch, dtype), back(plain, microbatch, dtype))
        deferred.end_pass()
    assert all(parameter.grad is None for parameter in waiting.parameters())
    for _ in range(3):
        deferred.compute_oldest()
    for found, expected in zip(waiting.parameters(), plain.parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        assert torch.equal(found.grad, expected.grad)


def test_the_oldest_pass_is_computed_first_and_its_last_layer_first() -> None:
    module, deferred, told = layers(torch.float32), DeferredWeightGradients(), []
    defer_weight_gradients(module, deferred)
    one_by_one = layers(torch.float32)
    for name, parameter in module.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda parameter, name=name: told.append((name, parameter.grad.clone()))
        )
    for microbatch in range(2):
        back(module, microbatch, torch.float32)
        deferred.end_pass()
    deferred.compute_oldest()
    back(one_by_one, 0, torch.float32)
    # weight and bias of one product come in the order of autograd's choosing
    assert [name.split(".")[0] for name, _ in told] == ["1", "1", "0", "0"]
    for name, gradient in told:
        assert torch.equal(gradient, one_by_one.get_parameter(name).grad)


def test_a_tied_use_gets_its_gradient_apart() -> None:
    embedding, deferred = VocabParallelEmbedding(12, 6, group=ALONE, init_std=1.0), DeferredWeightGradients()
    embedding.weight.data.copy_(numbers(12, 6, seed=1))
    defer_weight_gradients(embedding, deferred)
    apart: list[Tensor] = []
    receive_apart(embedding.weight, lambda gradient: apart.append(gradient.clone()))
    hidden = numbers(1, 5, 6, seed=2).requires_grad_()
    vocab_parallel_head(embedding, hidden).square().sum().backward()
    deferred.end_pass()
    assert not apart
    deferred.compute_oldest()
    logits = hidden.detach() @ embedding.weight.detach().t()
    torch.testing.assert_close(apart[0], 2 * logits.flatten(0, 1).t() @ hidden.detach().flatten(0, 1))
    assert embedding.weight.grad is not None
    assert not embedding.weight.grad.any(), "the weight's own gradient is that of its own use"


def test_inputs_without_a_gradient_leave_nothing_to_wait_for() -> None:
    """Else nothing would lead back to the layer, and its weight had no gradient at all."""
    module, deferred = layers(torch.float32)[0], DeferredWeightGradients()
    defer_weight_gradients(module, deferred)
    module(numbers(2, 5, 6, seed=3)).square().sum().backward()
    assert module.weight.grad is not None
    deferred.end_pass()
    deferred.compute_oldest()  # nothing
    with torch.no_grad():
        assert not module(numbers(2, 5, 6, seed=3)).requires_grad


def test_what_a_broken_step_has_left_is_forgotten() -> None:
    module, deferred = layers(torch.float32), DeferredWeightGradients()
    defer_weight_gradients(module, deferred)
    back(module, 0, torch.float32)
    deferred.end_pass()
    back(module, 1, torch.float32)
    deferred.start_step()
    deferred.end_pass()
    deferred.compute_oldest()
    assert all(parameter.grad is None for parameter in module.parameters())
