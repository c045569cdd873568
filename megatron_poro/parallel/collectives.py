"""Collectives as autograd functions, each with its dual: what is copied forward is summed backward, and the reverse.

All are called by every rank of the tensor group alike. With a group of one they do nothing.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (the functions f and g).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.uncompiled import uncompiled


def copy_to_group(tensor: Tensor, group: AxisGroup) -> Tensor:
    """Identity forward, sum over the group backward: the entrance of a tensor-parallel region."""
    if group.size == 1:
        return tensor
    return _copy(tensor, group)


def reduce_from_group(tensor: Tensor, group: AxisGroup) -> Tensor:
    """Sum over the group forward, identity backward: the exit of a tensor-parallel region."""
    if group.size == 1:
        return tensor
    return _reduce(tensor, group)


@uncompiled
def _copy(tensor: Tensor, group: AxisGroup) -> Tensor:
    copied: Tensor = _CopyToGroup.apply(tensor, group)  # type: ignore[no-untyped-call]
    return copied


@uncompiled
def _reduce(tensor: Tensor, group: AxisGroup) -> Tensor:
    reduced: Tensor = _ReduceFromGroup.apply(tensor, group)  # type: ignore[no-untyped-call]
    return reduced


def all_reduce(tensor: Tensor, group: AxisGroup, *, maximum: bool = False) -> Tensor:
    """Sum (or maximum) over the group, in place and without a graph; returns the tensor."""
    if group.size > 1:
        with group.clock.running(group.part):
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=group.process_group)
    return tensor


def broadcast_from_first(tensor: Tensor) -> Tensor:
    """Rank 0's values on every process of the run, in place and without a graph; returns the tensor."""
    dist.broadcast(tensor, src=0)
    return tensor


class _CopyToGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: AxisGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return all_reduce(gradient.clone(memory_format=torch.contiguous_format), ctx.group), None


class _ReduceFromGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: AxisGroup) -> Tensor:
        return all_reduce(tensor.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
