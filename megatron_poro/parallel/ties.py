"""A weight that two layers of one process use, taken apart: whose gradient is whose.

Where the embedding and the head are in one process, autograd adds up what both do to the weight, in the weight's own
format, before anybody sees it. On two stages of a pipeline nobody adds them up but the engine. An engine that wants the
same bits from both asks for the second use's gradient by itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

GradientReceiver = Callable[[Tensor], None]


def receive_apart(parameter: nn.Parameter, receiver: GradientReceiver) -> None:
    """From now on the gradient of every :func:`tied_use` goes to ``receiver`` and not into the parameter's own."""
    parameter.apart_receiver = receiver  # type: ignore[attr-defined]


def tied_use(parameter: nn.Parameter) -> Tensor:
    """The weight for a layer that is tied to it: the parameter itself, or a view of it if someone asked for that.

    Every layer that uses another layer's weight takes it through this function.
    """
    receiver: GradientReceiver | None = getattr(parameter, "apart_receiver", None)
    if receiver is None or not torch.is_grad_enabled():
        return parameter

    def take(gradient: Tensor) -> Tensor:
        receiver(gradient)
        return torch.zeros_like(gradient)  # not nothing: the weight keeps a gradient where this is its only use

    view = parameter.view_as(parameter)
    view.register_hook(take)  # type: ignore[no-untyped-call]
    return view
