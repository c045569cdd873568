"""Linear layers cut over the tensor group. With a group of one both are exactly ``nn.Linear``.

The sum over the group that the backward pass of an entrance needs runs beside the products for weight and bias, which
do not wait for it. In a pipeline those may wait for much more, see :mod:`megatron_poro.parallel.weight_gradients`.

With ``sequence`` the tensors outside of a pair of them are cut along the sequence, see
:mod:`megatron_poro.parallel.sequence`.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3; the sum beside the weight's gradient as in Megatron-LM,
``megatron/core/tensor_parallel/layers.py``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_poro.errors import TopologyError
from megatron_poro.parallel.collectives import reduce_from_group, start_all_reduce
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.sequence import linear_of_cut_sequence, reduce_to_cut_sequence
from megatron_poro.parallel.shards import Initial, ShardSpec, mark_partial, new_parameter
from megatron_poro.parallel.uncompiled import uncompiled
from megatron_poro.parallel.weight_gradients import (
    Deferrable,
    DeferredWeightGradients,
    KeepForLater,
    kept_apart,
    linear_gradients,
)


class ColumnParallelLinear(Deferrable):
    """``y = x W^T + b`` with the rows of ``W`` (the outputs) cut over the group: each rank computes its own outputs.

    Shapes:
        input ``[..., inputs]``, the same on every rank, or with ``sequence`` each rank's positions
        ``[b, s/tp, inputs]``; output ``[..., outputs/tp]`` of all positions.
    """

    def __init__(self, inputs: int, outputs: int, *, group: AxisGroup, init_std: float, sequence: bool = False) -> None:
        super().__init__()
        _require_divisible(outputs, group, "outputs")
        self.group, self.cut_sequence = group, sequence and group.size > 1
        self.weight = new_parameter(ShardSpec((outputs, inputs), 0, group.rank, group.size), Initial(std=init_std))
        self.bias = new_parameter(ShardSpec((outputs,), 0, group.rank, group.size), Initial())

    def forward(self, hidden: Tensor) -> Tensor:
        if self.cut_sequence:
            # [b, s, outputs/tp]
            return linear_of_cut_sequence(hidden, self.weight, self.bias, self.group, self.deferred)
        return linear_of_whole_input(hidden, self.weight, self.bias, self.group, self.deferred)  # [..., outputs/tp]


class RowParallelLinear(Deferrable):
    """``y = x W^T + b`` with the columns of ``W`` (the inputs) cut over the group: partial results are summed.

    The bias is whole on every rank and is added once, after the sum; with ``sequence`` to each rank's positions.

    Shapes:
        input ``[..., inputs/tp]``; output ``[..., outputs]``, the same on every rank, or with ``sequence`` each rank's
        positions ``[b, s/tp, outputs]``.
    """

    def __init__(self, inputs: int, outputs: int, *, group: AxisGroup, init_std: float, sequence: bool = False) -> None:
        super().__init__()
        _require_divisible(inputs, group, "inputs")
        self.group, self.cut_sequence = group, sequence and group.size > 1
        self.weight = new_parameter(ShardSpec((outputs, inputs), 1, group.rank, group.size), Initial(std=init_std))
        self.bias = new_parameter(ShardSpec((outputs,)), Initial())
        if self.cut_sequence:
            mark_partial(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.group.size == 1:
            return _linear(hidden, self.weight, self.bias, self.deferred)
        reduce = reduce_to_cut_sequence if self.cut_sequence else reduce_from_group
        # no name for this rank's part of the sum, so that it is gone when the bias is added
        return reduce(_linear(hidden, self.weight, None, self.deferred), self.group) + self.bias


def linear_of_whole_input(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    group: AxisGroup,
    deferred: DeferredWeightGradients | None = None,
) -> Tensor:
    """``F.linear`` with this rank's rows of the weight: the entrance of a tensor-parallel region.

    Called by every rank of the tensor group alike. Backward sums the input's gradient over the group, and computes the
    gradients of weight and bias while that is under way, or leaves them to ``deferred``. With a group of one it is
    ``F.linear``.

    Shapes:
        hidden ``[..., i]``, the same on every rank, weight ``[o/tp, i]``, bias ``[o/tp]`` -> ``[..., o/tp]``.
    """
    if group.size == 1:
        return _linear(hidden, weight, bias, deferred)
    return _with_own_backward(hidden, weight, bias, group, deferred)


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, deferred: DeferredWeightGradients | None) -> Tensor:
    """``F.linear`` of what this rank has."""
    if deferred is None:
        return F.linear(hidden, weight, bias)
    return _with_own_backward(hidden, weight, bias, AxisGroup.single(), deferred)


@uncompiled
def _with_own_backward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, group: AxisGroup, deferred: DeferredWeightGradients | None
) -> Tensor:
    weight, bias, keep = kept_apart(deferred, hidden, weight, bias)
    output: Tensor = _Linear.apply(hidden, weight, bias, group, keep)  # type: ignore[no-untyped-call]
    return output


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, group: AxisGroup, keep: KeepForLater | None
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.group, ctx.keep, ctx.has_bias = group, keep, bias is not None
        return F.linear(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight = ctx.saved_tensors
        of_input, reducing = None, None
        if ctx.needs_input_grad[0]:
            of_input = gradients[0] @ weight  # [..., i]
            reducing = start_all_reduce(of_input, ctx.group) if ctx.group.size > 1 else None
        of_weight = of_bias = None
        if ctx.keep is not None:
            values = hidden.detach()  # what waits does not hold the graph behind the input
            ctx.keep(gradients[0], lambda: values)
        else:
            of_weight, of_bias = linear_gradients(gradients[0], hidden, has_bias=ctx.has_bias)
        return reducing.wait() if reducing else of_input, of_weight, of_bias, None, None


def _require_divisible(width: int, group: AxisGroup, what: str) -> None:
    if width % group.size != 0:
        raise TopologyError(f"parallel.tensor={group.size} does not divide the {width} {what} of a linear layer.")
