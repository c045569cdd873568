"""The sequence cut over the tensor group: what lies outside of attention and feed-forward is ``[b, s/tp, h]``.

A sum over the group is a reduce-scatter followed by an all-gather. Tensor parallelism does both at the exit of each
region, and every rank then holds the whole residual stream. Here the reduce-scatter stays at the exit and the
all-gather moves to the next entrance: as many bytes are sent, and in between each rank holds its positions only.

A layer at an entrance keeps its cut input for the backward pass and gathers it again there, while it computes the
gradient of the input: that is one all-gather more than tensor parallelism sends, and what makes the memory smaller.

All are called by every rank of the tensor group alike, with slices of one size.

Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2 (the functions g and g-bar); keeping the cut input as
in Megatron-LM, ``megatron/core/tensor_parallel/layers.py``.
"""

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from megatron_poro.errors import TopologyError
from megatron_poro.parallel.collectives import Arriving
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.uncompiled import uncompiled
from megatron_poro.parallel.weight_gradients import (
    DeferredWeightGradients,
    KeepForLater,
    kept_apart,
    linear_gradients,
)


@uncompiled
def linear_of_cut_sequence(
    cut: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    group: AxisGroup,
    deferred: DeferredWeightGradients | None = None,
) -> Tensor:
    """``F.linear`` of the whole sequence, from this rank's part of it: the entrance of a tensor-parallel region.

    Forward gathers the input. Backward gathers it again, and sums the input's gradient over the group, of which each
    rank gets its part. Weight and bias get the gradient of the whole sequence; what is left to ``deferred`` gathers the
    input when its turn comes.

    Shapes:
        cut ``[b, s/tp, i]``, weight ``[o, i]``, bias ``[o]`` -> ``[b, s, o]``.
    """
    weight, bias, keep = kept_apart(deferred, cut, weight, bias)
    output: Tensor = _LinearOfCutSequence.apply(cut, weight, bias, group, keep)  # type: ignore[no-untyped-call]
    return output


@uncompiled
def reduce_to_cut_sequence(partial: Tensor, group: AxisGroup) -> Tensor:
    """Sum over the group, of which each rank gets its positions: the exit of a tensor-parallel region.

    Backward gathers the gradient.

    Shapes:
        partial ``[b, s, h]`` -> ``[b, s/tp, h]``.

    Raises:
        TopologyError: if the group does not divide the sequence.
    """
    reduced: Tensor = _ReduceToCutSequence.apply(partial, group)  # type: ignore[no-untyped-call]
    return reduced


def _start_gather(cut: Tensor, group: AxisGroup) -> Arriving:
    """Begins to gather ``[b, s/tp, h]`` of all ranks as ``[tp*b, s/tp, h]``."""
    parts = cut.new_empty(group.size * len(cut), *cut.shape[1:])
    work = dist.all_gather_single(parts, cut.contiguous(), group=group.process_group, async_op=True)
    return Arriving(work, parts, group)


def _whole(gathering: Arriving) -> Tensor:
    """Waits for ``[tp*b, s/tp, h]`` and returns it as ``[b, s, h]``; no copy for one sample."""
    parts = gathering.wait()
    size = gathering.group.size
    return parts.view(size, len(parts) // size, *parts.shape[1:]).transpose(0, 1).flatten(1, 2)


def _start_reduce(partial: Tensor, group: AxisGroup) -> Arriving:
    """Begins to sum ``[b, s, h]`` over the group, each rank's part of which is ``[b, s/tp, h]``."""
    batch, length, width = partial.shape
    if length % group.size:
        raise TopologyError(
            f"parallel.tensor={group.size} does not divide the {length} tokens of a sample, which "
            "parallel.sequence=true cuts. Use another data.sequence_length or parallel.sequence=false."
        )
    # [tp*b, s/tp, h]; no copy for one sample
    parts = partial.reshape(batch, group.size, length // group.size, width).transpose(0, 1).flatten(0, 1).contiguous()
    mine = partial.new_empty(batch, length // group.size, width)
    work = dist.reduce_scatter_single(mine, parts, group=group.process_group, async_op=True)
    return Arriving(work, mine, group)


class _LinearOfCutSequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cut: Tensor, weight: Tensor, bias: Tensor | None, group: AxisGroup, keep: KeepForLater | None
    ) -> Tensor:
        ctx.save_for_backward(cut, weight)
        ctx.group, ctx.keep, ctx.has_bias = group, keep, bias is not None
        return F.linear(_gathered(cut, group), weight, bias)  # [b, s, o]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        (gradient,) = gradients  # [b, s, o]
        cut, weight = ctx.saved_tensors
        if ctx.keep is not None:
            ctx.keep(gradient, functools.partial(_gathered, cut.detach(), ctx.group))
            return _start_reduce(gradient @ weight, ctx.group).wait(), None, None, None, None
        gathering = _start_gather(cut, ctx.group)
        of_input = gradient @ weight  # [b, s, i]
        # two collectives of a group are never under way at once: the sum starts when the input is there
        whole = _whole(gathering)
        reducing = _start_reduce(of_input, ctx.group)
        of_weight, of_bias = linear_gradients(gradient, whole, has_bias=ctx.has_bias)
        return reducing.wait(), of_weight, of_bias, None, None


def _gathered(cut: Tensor, group: AxisGroup) -> Tensor:
    """``[b, s/tp, h]`` of all ranks as ``[b, s, h]``."""
    return _whole(_start_gather(cut, group))


class _ReduceToCutSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: AxisGroup) -> Tensor:
        ctx.group = group
        return _start_reduce(partial, group).wait()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradients[0], ctx.group), None
