"""Gradients of a process in flat buckets: added up in fp32 as autograd makes them, then cut over the replicas.

A bucket is one flat tensor of weights, of which the parameters are views, and one of fp32 gradients beside it. It is
cut into as many equal shares as there are replicas, so that one reduce-scatter gives every replica the sum of its share
and one all-gather brings new weights back: each half of what an all-reduce of the whole would send.

The gradient of a backward pass is taken the moment autograd has made it, and dropped: no gradient in the weights'
format outlives its parameter. A bucket whose parameters have all had the last backward pass of the step is sent at
once, while the passes go on and the pipeline drains. Buckets are sent in a fixed order, so that replicas cannot mix
them up; it is the order in which a backward pass completes them.

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
from megatron_poro.parallel.collectives import Arriving, all_reduce, start_all_gather, start_reduce_scatter
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
        parameters: of this process, in the order of its layers.
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


class GradientSums:
    """Adds up the gradients of a step's backward passes and over the replicas.

    Args:
        buckets: what is added up.
        replicas: who adds up.
        passes: how many backward passes of a step give a parameter a gradient; asked once.
    """

    def __init__(
        self, buckets: Sequence[Bucket], *, replicas: AxisGroup, passes: Callable[[nn.Parameter], int]
    ) -> None:
        self._buckets, self._replicas = buckets, replicas
        self._sums = [
            _Sum(parameter, view, position, passes(parameter))
            for position, bucket in enumerate(buckets)
            for parameter, view in bucket.with_gradients()
        ]
        for one in self._sums:
            self._listen(one)
        self.start_step()

    def start_step(self) -> None:
        """Forgets the last step; its sums are overwritten by the first gradients that come."""
        for one in self._sums:
            one.left = one.passes
        self._incomplete = [len(bucket.parameters) for bucket in self._buckets]
        self._sent: list[Arriving | None] = []

    def finish(self) -> None:
        """Sends what has not been sent, and waits until this replica's shares are the sum over everyone.

        Collective over the replicas, and over what completes the buckets.
        """
        for one in self._sums:
            if one.left == one.passes:
                one.view.zero_()  # it had no gradient in this step, and still holds the last one's
        while len(self._sent) < len(self._buckets):
            self._send()
        for arriving in self._sent:
            if arriving is not None:
                arriving.wait()
        # by name, which is one order for everybody: the ends of a tie send their buckets at other times
        for bucket in sorted(self._buckets, key=lambda bucket: name_of(bucket.parameters[0])):
            bucket.complete()

    def gather(self) -> None:
        """Makes the reduced gradients whole again on every replica; for comparisons. Collective over the replicas."""
        for arriving in [start_all_gather(bucket.gradients, self._replicas) for bucket in self._buckets]:
            if arriving is not None:
                arriving.wait()

    def _listen(self, one: "_Sum") -> None:
        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None, f"{name_of(one.parameter)} was told of a gradient that is not there"
            self._add(one, gradient)

        one.parameter.register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]

    def _add(self, one: "_Sum", gradient: Tensor) -> None:
        assert one.left > 0, (
            f"{name_of(one.parameter)} got more than the {one.passes} gradients that were expected in this step: its "
            "bucket has been sent without this one"
        )
        if one.left == one.passes:
            one.view.copy_(gradient)
        else:
            one.view.add_(gradient)
        one.left -= 1
        if one.left == 0:
            self._incomplete[one.bucket] -= 1
            while len(self._sent) < len(self._buckets) and self._incomplete[len(self._sent)] == 0:
                self._send()

    def _send(self) -> None:
        """Begins to reduce the next bucket."""
        self._sent.append(start_reduce_scatter(self._buckets[len(self._sent)].gradients, self._replicas))


class _Sum:
    """The sum of a parameter's gradients: where it is, in which bucket, and how many terms it has yet to get."""

    def __init__(self, parameter: nn.Parameter, view: Tensor, bucket: int, passes: int) -> None:
        self.parameter, self.view, self.bucket, self.passes = parameter, view, bucket, passes
        self.left = passes


def drop_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """From now on a parameter's gradient is dropped as soon as autograd has made it, for whoever takes it before."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(drop)  # type: ignore[no-untyped-call]
