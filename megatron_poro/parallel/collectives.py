"""Collectives over a group: at once, under way, and as an autograd function, the sum at a tensor-parallel exit.

Its dual, the sum of gradients at an entrance, is in :mod:`megatron_poro.parallel.linear`, beside the products that run
meanwhile. All are called by every rank of the group alike. With a group of one they do nothing.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (the function g; f is the entrance).
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.uncompiled import uncompiled


def reduce_from_group(tensor: Tensor, group: AxisGroup) -> Tensor:
    """Sum over the group forward, identity backward: the exit of a tensor-parallel region."""
    if group.size == 1:
        return tensor
    return _reduce(tensor, group)


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


class Arriving(NamedTuple):
    """A collective under way, and where its result will be."""

    work: Any
    tensor: Tensor
    group: AxisGroup

    def wait(self) -> Tensor:
        """What the collective gives; only this wait counts as waiting."""
        with self.group.clock.running(self.group.part):
            self.work.wait()
        return self.tensor


def start_all_reduce(tensor: Tensor, group: AxisGroup) -> Arriving:
    """Begins to sum over a group of more than one, in place; leave the tensor alone until it has arrived."""
    work = dist.all_reduce(tensor, group=group.process_group, async_op=True)
    return Arriving(work, tensor, group)


def start_reduce_scatter(whole: Tensor, group: AxisGroup) -> Arriving | None:
    """Begins to sum over the group, in place, a flat tensor of which each rank gets its part.

    When it has arrived, the rank's part of ``whole`` is the sum, and what else is in it means nothing. ``None`` with a
    group of one, for which it is the sum already.

    Shapes:
        whole ``[n]``, a multiple of the group; each rank's part ``[n/group]``, in the order of ranks.
    """
    if group.size == 1:
        return None
    mine = whole.chunk(group.size)[group.rank]
    work = dist.reduce_scatter_single(mine, whole, group=group.process_group, async_op=True)
    return Arriving(work, mine, group)


def start_all_gather(whole: Tensor, group: AxisGroup) -> Arriving | None:
    """Begins to put every rank's part of a flat tensor into those of all, in place: the way back from
    :func:`start_reduce_scatter`. ``None`` with a group of one, which has it all.

    Shapes:
        whole ``[n]``, a multiple of the group; each rank's part ``[n/group]``, in the order of ranks.
    """
    if group.size == 1:
        return None
    mine = whole.chunk(group.size)[group.rank]
    work = dist.all_gather_single(whole, mine, group=group.process_group, async_op=True)
    return Arriving(work, whole, group)


def broadcast_from_first(tensor: Tensor) -> Tensor:
    """Rank 0's values on every process of the run, in place and without a graph; returns the tensor."""
    dist.broadcast(tensor, src=0)
    return tensor


class _ReduceFromGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: AxisGroup) -> Tensor:
        return all_reduce(tensor.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
