"""AdamW with its state cut over the replicas (ZeRO-1): each keeps fp32 masters and moments of its share of each bucket.

In bf16 the masters begin as the rounded weights, and new weights are the rounded masters. In fp32 the masters are the
replica's own share of the weights: no second copy. Either way the update is one call over the shares, and the new
weights of all replicas are gathered in place.

Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5.1.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from megatron_poro.config.run import OptimizerConfig
from megatron_poro.engine.buckets import Bucket, GradientSums, Piece, drop_gradients, make_buckets
from megatron_poro.engine.gradients import clip_
from megatron_poro.engine.optimizer import adamw, decays, groups_of, moments, prepare_state, set_step_count
from megatron_poro.parallel.bucket_sizes import bucket_numbers
from megatron_poro.parallel.collectives import start_all_gather
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.step_clock import Part


class ShardedAdamW:
    """The weights of a process, the sums of their gradients, and this replica's share of what updates them.

    Args:
        parameters: of this process, in the order of its layers; their data becomes views of flat tensors.
        config: AdamW's settings.
        replicas: who shares the state out.
        completed_over: the group over which a parameter's gradient is summed beside the replicas, see
            :mod:`megatron_poro.engine.buckets`.
        passes: how many backward passes of a step give a parameter a gradient; ``None`` if gradients are not added up
            here, but written into :meth:`gradients` by someone who takes them from autograd.
        reproducible: see :func:`~megatron_poro.engine.optimizer.adamw`.

    Attributes:
        optimizer: torch's, of the masters.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        config: OptimizerConfig,
        *,
        replicas: AxisGroup,
        completed_over: Callable[[nn.Parameter], AxisGroup],
        passes: Callable[[nn.Parameter], int] | None,
        reproducible: bool,
    ) -> None:
        self._clip_norm = config.clip_norm
        # waiting for new weights belongs to the update, not to the sums of gradients
        self._weight_owners = dataclasses.replace(replicas, part=Part.OPTIMIZER)
        self._buckets = make_buckets(
            parameters, replicas=replicas, completed_over=completed_over, numbers=bucket_numbers(replicas.size)
        )
        self._sums = GradientSums(self._buckets, replicas=replicas, passes=passes) if passes is not None else None
        if self._sums is None:
            drop_gradients(parameters)
        self._masters = [_master(bucket) for bucket in self._buckets]
        held = list(zip(self._masters, self._buckets, strict=True))
        for master, bucket in held:
            master.grad = bucket.gradients[bucket.share]
        self.optimizer = adamw(
            groups_of(
                decayed=[master for master, bucket in held if decays(bucket.parameters[0])],
                kept=[master for master, bucket in held if not decays(bucket.parameters[0])],
                config=config,
            ),
            config,
            reproducible=reproducible,
        )
        prepare_state(self.optimizer)

    def start_step(self) -> None:
        """Before the first backward pass of a step."""
        if self._sums is not None:
            self._sums.start_step()

    def finish_reduction(self) -> None:
        """After the last backward pass: this replica's shares become the sum over everyone. Collective."""
        if self._sums is not None:
            self._sums.finish()

    def gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its whole fp32 gradient, in its shape.

        Those are this replica's own until :meth:`finish_reduction`; afterwards only :meth:`shared_gradients` are to be
        used, until :meth:`gather_gradients`.
        """
        for bucket in self._buckets:
            yield from bucket.with_gradients()

    def shared_gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter of which something lies in this replica's share, with that part of its gradient; flat."""
        for bucket in self._buckets:
            for piece in bucket.pieces():
                yield piece.parameter, bucket.gradients[bucket.share][piece.inside]

    def gather_gradients(self) -> None:
        """Makes reduced gradients whole on every replica, for comparisons. Collective."""
        if self._sums is not None:
            self._sums.gather()

    def masters(self) -> Iterator[tuple[Piece, Tensor]]:
        """What this replica keeps fp32 values of, and the master whose piece it is."""
        for bucket, master in zip(self._buckets, self._masters, strict=True):
            for piece in bucket.pieces():
                yield piece, master

    def update(self, norm: Tensor) -> None:
        """Clips and steps. Collective over the replicas.

        Args:
            norm: of the whole gradient, scalar.
        """
        shares = [bucket.gradients[bucket.share] for bucket in self._buckets]
        clip_(shares, norm=norm, clip_norm=self._clip_norm)
        self.optimizer.step()
        self._refresh_weights()

    def load_finished(self, optimizer_step: int) -> None:
        """After masters and moments have been written. Collective over the replicas."""
        set_step_count(self.optimizer, optimizer_step)
        self._refresh_weights()

    def held_for_good(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor kept between steps, with the part of a memory plan that it belongs to."""
        for bucket, master in zip(self._buckets, self._masters, strict=True):
            yield "gradients", bucket.gradients
            yield "optimizer", master
            for moment in moments(self.optimizer, master):
                yield "optimizer", moment
            for parameter in bucket.parameters:  # after the master, which is a view of the same where weights are fp32
                yield "weights", parameter

    @torch.no_grad()
    def _refresh_weights(self) -> None:
        """Every replica's masters, rounded, on all of them."""
        for bucket, master in zip(self._buckets, self._masters, strict=True):
            if bucket.weights.dtype != master.dtype:
                bucket.weights[bucket.share].copy_(master)
        for arriving in [start_all_gather(bucket.weights, self._weight_owners) for bucket in self._buckets]:
            if arriving is not None:
                arriving.wait()


def _master(bucket: Bucket) -> Tensor:
    """fp32 values of this replica's share: of fp32 weights a view, of others a copy."""
    share = bucket.weights[bucket.share]
    return share if share.dtype == torch.float32 else share.float()
