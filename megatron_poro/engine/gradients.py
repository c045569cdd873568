"""The gradient as a whole: its norm, clipping, and the decision whether a step may be taken."""

from collections.abc import Iterable

import torch
from torch import Tensor

from megatron_poro.errors import EngineError


def sum_of_squares(gradients: Iterable[Tensor], device: torch.device) -> Tensor:
    """Sum of squares of all elements; scalar fp32 on ``device``."""
    counted = list(gradients)
    if not counted:
        return torch.zeros((), device=device)
    return torch.stack(list(torch._foreach_norm(counted))).float().square().sum()


def clip_(gradients: Iterable[Tensor], *, norm: Tensor, clip_norm: float) -> None:
    """Scales gradients in place so that a global norm above ``clip_norm`` becomes ``clip_norm``; 0 switches it off."""
    if clip_norm > 0.0:
        factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(list(gradients), factor)


def is_finite(*, loss: Tensor, grad_norm: Tensor) -> bool:
    """Whether a step may be taken; both are global values, so every process decides alike."""
    return bool(torch.isfinite(loss) & torch.isfinite(grad_norm))


def require_finite(*, loss: Tensor, grad_norm: Tensor, consumed_samples: int) -> None:
    """Reports a step that could not be taken because its loss or gradient is not a number.

    Raises:
        EngineError: naming both values and the samples of the step.
    """
    if not is_finite(loss=loss, grad_norm=grad_norm):
        raise EngineError(
            f"the step that begins at sample {consumed_samples} has loss {float(loss)} and gradient norm "
            f"{float(grad_norm)}: not finite. No weight was changed and nothing is saved after this; look at those "
            "samples, or lower schedule.learning_rate or engine.precision=fp32, and resume from the last checkpoint."
        )
