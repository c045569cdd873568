"""Weights and gradients of a process in flat buckets, cut over the replicas.

A bucket is one flat tensor of weights, of which the parameters are views, and one of fp32 gradients beside it. It is
cut into as many equal shares as there are replicas, so that one reduce-scatter gives every replica the sum of its share
and one all-gather brings new weights back: each half of what an all-reduce of the whole would send.

Buckets are listed in the order in which a backward pass completes their gradients
(:class:`~megatron_poro.engine.gradient_sums.ScatteredSums` sends them in it).

Of some parameters another process of the replica has a term of the gradient too: the other end of a tie, or the other
tensor ranks where each saw its positions only. They are put into buckets apart, which all these processes cut at the
same places, so that their shares hold the same elements. A sum over two axes of the grid may be taken over either one
first; here the replicas come first, because a share is as many times smaller as there are replicas.

Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5.1 (ZeRO-1); buckets cut over the replicas as in
Megatron-LM, ``megatron/core/distributed/distributed_data_parallel.py``.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from megatron_poro.engine.optimizer import decays
from megatron_poro.parallel.collectives import all_reduce
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.shards import is_partial, name_of


class Piece(NamedTuple):
    """What lies of a parameter in this replica's share of a bucket.

    Attributes:
        parameter: the whole.
        inside: where it lies in the share.
        start: position of its first element in the flattened parameter.
    """

    parameter: nn.Parameter
    inside: slice
    start: int


class Bucket:
    """Parameters that travel together. Making one moves their weights into its flat tensor.

    Args:
        parameters: of one format and device.
        replicas: who shares the bucket out.
        completed_over: the group over which shares are summed after the replicas; of one where nothing is missing.

    Attributes:
        parameters: as given.
        weights: flat, in the parameters' format, padded to equal shares.
        gradients: flat fp32, as long; padding is zero. After the sum over the replicas only this replica's share is it.
        share: this replica's part of both.
        completed_over: as given.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, replicas: AxisGroup, completed_over: AxisGroup) -> None:
        self.parameters, self.completed_over = tuple(parameters), completed_over
        self._bounds = list(accumulate((parameter.numel() for parameter in parameters), initial=0))
        length = -(-self._bounds[-1] // replicas.size)
        self.share = slice(replicas.rank * length, (replicas.rank + 1) * length)
        self.weights = torch.zeros(length * replicas.size, dtype=parameters[0].dtype, device=parameters[0].device)
        self.gradients = torch.zeros_like(self.weights, dtype=torch.float32)
        for parameter, weight in zip(parameters, self._views(self.weights), strict=True):
            weight.copy_(parameter.detach())
            parameter.data = weight

    def with_gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with the view of its gradient."""
        return zip(self.parameters, self._views(self.gradients), strict=True)

    def pieces(self) -> Iterator[Piece]:
        """What of which parameter lies in this replica's share, in order."""
        for parameter, (begin, end) in zip(self.parameters, pairwise(self._bounds), strict=True):
            first, last = max(begin, self.share.start), min(end, self.share.stop)
            if first < last:
                yield Piece(parameter, slice(first - self.share.start, last - self.share.start), first - begin)

    def complete(self) -> None:
        """Adds the terms that other processes of this replica have. Collective over them."""
        all_reduce(self.gradients[self.share], self.completed_over)

    def _views(self, flat: Tensor) -> list[Tensor]:
        return [
            flat[begin:end].view(parameter.shape)
            for parameter, (begin, end) in zip(self.parameters, pairwise(self._bounds), strict=True)
        ]


def make_buckets(
    parameters: Sequence[nn.Parameter],
    *,
    replicas: AxisGroup,
    completed_over: Callable[[nn.Parameter], AxisGroup],
    numbers: int,
) -> list[Bucket]:
    """Deals parameters out to buckets, in the order in which a backward pass completes them.

    Parameters of a bucket are alike in weight decay and in what completes their sum; a weight that several stages hold
    has one alone.

    Args:
        parameters: of this process, in the order of its layers in the model.
        replicas: who shares them out.
        completed_over: see :class:`Bucket`.
        numbers: a bucket is closed by the parameter that brings it to this many.
    """
    open_ones: dict[tuple[object, ...], list[int]] = {}
    closed: list[list[int]] = []
    for index in reversed(range(len(parameters))):
        parameter = parameters[index]
        alone = completed_over(parameter).size > 1 and not is_partial(parameter)
        kind = (decays(parameter), is_partial(parameter), name_of(parameter) if alone else None)
        members = open_ones.setdefault(kind, [])
        members.append(index)
        if sum(parameters[member].numel() for member in members) >= numbers:
            closed.append(open_ones.pop(kind))
    # the one whose first parameter is the last to have its gradient is the last to be complete
    dealt = sorted([*closed, *open_ones.values()], key=min, reverse=True)
    return [
        Bucket(
            [parameters[index] for index in sorted(members)],
            replicas=replicas,
            completed_over=completed_over(parameters[members[0]]),
        )
        for members in dealt
    ]
