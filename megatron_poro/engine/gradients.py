"""The gradient as a whole: its norm, clipping, and the decision whether a step may be taken."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from megatron_poro.engine.engine import StepGate
from megatron_poro.parallel.agreement import World


def sum_of_squares(gradients: Iterable[Tensor], device: torch.device) -> Tensor:
    """Sum of squares of all elements; scalar fp32 on ``device``."""
    counted = list(gradients)
    if not counted:
        return torch.zeros((), device=device)
    return torch.stack(list(torch._foreach_norm(counted))).float().square().sum()


def clip_(gradients: Iterable[Tensor], *, norm: Tensor, clip_norm: float) -> None:
    """Scales gradients in place so that a global norm above ``clip_norm`` becomes ``clip_norm``; 0 switches it off."""
    if clip_norm > 0.0:
        factor = clip_norm / (norm + 1e-6)
        if float(factor) < 1.0:  # known to the host already: the step was decided by this norm
            torch._foreach_mul_(list(gradients), factor)


def may_step(gate: StepGate, *, loss: Tensor, grad_norm: Tensor, world: World) -> bool:
    """Whether a step may be taken. A collective call with one answer: two replicas may round a norm differently.

    Args:
        gate: asked if both values are finite.
        loss, grad_norm: global values, scalar.
        world: all processes of the run.
    """
    values = float(loss), float(grad_norm)
    refused = not all(map(math.isfinite, values)) or not gate(*values)
    return not world.any(refused)
