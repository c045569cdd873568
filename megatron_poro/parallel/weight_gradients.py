"""Gradients of a linear layer's own weight and bias: at once, or later than the gradient of its input.

A pipeline stage waits for the gradient of the other stage's input and for nothing else. A layer that was given
:class:`DeferredWeightGradients` leaves there what its own gradients are made of, and the engine computes them while
it would wait, see :mod:`megatron_poro.engine.deferring_schedule`. They come to the weight through autograd as they
would have at once: the same product of the same numbers, in the order of microbatches, to the same hooks.

Source: Qi et al. 2023, arXiv:2401.10241 (there a backward pass is B and W).
"""

import functools
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Inputs = Callable[[], Tensor]
"""Gives what a layer has multiplied, ``[..., i]``; may be collective over the tensor group."""

KeepForLater = Callable[[Tensor, Inputs], None]
"""Takes the gradient of a layer's output, ``[..., o]``, and its input."""


def linear_gradients(gradient: Tensor, inputs: Tensor, *, has_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight and bias.

    Shapes:
        gradient of the output ``[..., o]``, inputs ``[..., i]`` -> ``[o, i]`` and ``[o]``.
    """
    rows = gradient.flatten(0, -2)  # [b*s, o]
    return rows.t() @ inputs.flatten(0, -2), rows.sum(dim=0) if has_bias else None


class DeferredWeightGradients:
    """What is left to compute of the backward passes of a process, oldest first."""

    def __init__(self) -> None:
        self._passes: deque[deque[_Waiting]] = deque()
        self._open: deque[_Waiting] = deque()

    def keeper(self, weight: Tensor, bias: Tensor | None) -> KeepForLater:
        """For a layer: where its backward pass leaves what the gradients of its weight and bias are made of."""
        return functools.partial(self._keep, weight, bias)

    def start_step(self) -> None:
        """Forgets what a step that did not end has left."""
        self._passes.clear()
        self._open.clear()

    def end_pass(self) -> None:
        """After each backward pass: what was left since the one before is its own."""
        self._passes.append(self._open)
        self._open = deque()

    def compute_oldest(self) -> None:
        """Computes what the oldest pass has left, in the order in which it came.

        Called by every rank of the tensor group alike.
        """
        waiting = self._passes.popleft()
        while waiting:  # each lets go of its tensors before the next is computed
            waiting.popleft().compute()

    def _keep(self, weight: Tensor, bias: Tensor | None, gradient: Tensor, inputs: Inputs) -> None:
        self._open.append(_Waiting(weight, bias, gradient, inputs))


def kept_apart(
    deferred: DeferredWeightGradients | None, inputs: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, KeepForLater | None]:
    """Weight and bias as a layer's graph sees them, and what keeps their gradients if those wait.

    Then the graph knows nothing of weight and bias: it must go through the inputs, or nothing comes by.
    """
    if deferred is None or not inputs.requires_grad:
        return weight, bias, None
    return weight.detach(), None if bias is None else bias.detach(), deferred.keeper(weight, bias)


class Deferrable(nn.Module):
    """A layer whose own gradients can wait.

    Attributes:
        deferred: where they wait; ``None`` computes them inside of backward passes.
    """

    deferred: DeferredWeightGradients | None = None


def defer_weight_gradients(module: nn.Module, deferred: DeferredWeightGradients) -> None:
    """From now on the own gradients of all linear layers of a module wait."""
    for layer in module.modules():
        if isinstance(layer, Deferrable):
            layer.deferred = deferred


class _Waiting(NamedTuple):
    """The gradients of a weight and a bias, not yet computed."""

    weight: Tensor
    bias: Tensor | None
    gradient: Tensor
    inputs: Inputs

    def compute(self) -> None:
        own: Tensor = _OwnGradients.apply(self.weight, self.bias, self.gradient, self.inputs())  # type: ignore[no-untyped-call]
        own.backward()  # type: ignore[no-untyped-call]


class _OwnGradients(torch.autograd.Function):
    """Of no value forward; backward what a layer's backward pass would have given its weight and bias."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, gradient: Tensor, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(gradient, inputs)
        ctx.has_bias = bias is not None
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        gradient, inputs = ctx.saved_tensors
        return *linear_gradients(gradient, inputs, has_bias=ctx.has_bias), None, None
