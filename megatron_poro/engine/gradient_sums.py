"""From the gradients of a process's backward passes to the mean gradient over the global batch, in two ways.

:class:`ScatteredSums` adds up in fp32 and leaves each replica its share. :class:`ExactGradients` gets every gradient
back whole from exact sums. An engine chooses one of them once, and sees a :class:`GradientSums` after that.

The gradient of a backward pass is taken the moment autograd has made it, and dropped: no gradient in the weights'
format outlives its parameter.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from megatron_poro.engine.buckets import Bucket
from megatron_poro.engine.exact_sums import ExactSums
from megatron_poro.engine.step_sums import Gradients
from megatron_poro.parallel.collectives import Arriving, start_all_gather, start_reduce_scatter
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.shards import name_of


class GradientSums(Protocol):
    """The gradients of one step, in the buckets that the optimizer's shares are cut from."""

    def start_step(self) -> None:
        """Before the first backward pass of a step."""
        ...

    def reduce(self) -> None:
        """After the last backward pass: this replica's shares become those of the mean gradient. Collective."""
        ...

    def reduced(self) -> Gradients:
        """What there is of the mean gradient after :meth:`reduce`, as the engine's
        :class:`~megatron_poro.engine.step_sums.StepSums` want it for their totals.
        """
        ...

    def whole(self) -> Gradients:
        """The mean gradient of every parameter in its shape, for comparisons. Collective."""
        ...


class ScatteredSums:
    """Sums in fp32 in the order in which their terms come, each bucket sent as soon as it is complete.

    A bucket whose parameters have all had the last backward pass of the step is sent at once, while the passes go on
    and the pipeline drains. Buckets are sent in a fixed order, so that replicas cannot mix them up.

    Goes with :class:`~megatron_poro.engine.step_sums.PlainSums`: what is reduced is each replica's share of a gradient,
    flat.

    Args:
        buckets: what is added up, in the order in which a backward pass completes them.
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

    def reduce(self) -> None:
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

    def reduced(self) -> Gradients:
        for bucket in self._buckets:
            for piece in bucket.pieces():
                yield piece.parameter, bucket.gradients[bucket.share][piece.inside]

    def whole(self) -> Gradients:
        for arriving in [start_all_gather(bucket.gradients, self._replicas) for bucket in self._buckets]:
            if arriving is not None:
                arriving.wait()
        for bucket in self._buckets:
            yield from bucket.with_gradients()

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


class ExactGradients:
    """The gradients of exact sums, which take them from autograd themselves; whole on every replica.

    Args:
        buckets: where the mean gradient is written.
        sums: of the same parameters; they begin a step by themselves.
    """

    def __init__(self, buckets: Sequence[Bucket], *, sums: ExactSums) -> None:
        self._buckets, self._exact = buckets, sums
        for parameter, _ in self.whole():
            parameter.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]

    def start_step(self) -> None:
        pass

    def reduce(self) -> None:
        self._exact.reduce_gradients(self.whole())

    def reduced(self) -> Gradients:
        return self.whole()

    def whole(self) -> Gradients:
        for bucket in self._buckets:
            yield from bucket.with_gradients()


def _drop(parameter: Tensor) -> None:
    """Lets go of what autograd has made; exact sums had it before."""
    parameter.grad = None
