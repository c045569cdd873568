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
from megatron_poro.engine.buckets import Bucket, Piece, make_buckets
from megatron_poro.engine.gradients import clip_
from megatron_poro.engine.optimizer import adamw, decays, groups_of, moments, prepare_state, set_step_count
from megatron_poro.parallel.bucket_sizes import bucket_numbers
from megatron_poro.parallel.collectives import start_all_gather
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.step_clock import Part


class ShardedAdamW:
    """The weights of a process in buckets, and this replica's share of what updates them.

    Args:
        parameters: of this process, in the order of its layers in the model; their data becomes views of flat tensors.
        config: AdamW's settings.
        replicas: who shares the state out.
        completed_over: the group over which a parameter's gradient is summed beside the replicas, see
            :mod:`megatron_poro.engine.buckets`.
        reproducible: see :func:`~megatron_poro.engine.optimizer.adamw`.

    Attributes:
        buckets: where the weights are. Before an update this replica's shares of their gradients have to be the mean
            over the global batch (:mod:`megatron_poro.engine.gradient_sums`).
        optimizer: torch's, of the masters.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        config: OptimizerConfig,
        *,
        replicas: AxisGroup,
        completed_over: Callable[[nn.Parameter], AxisGroup],
        reproducible: bool,
    ) -> None:
        self._clip_norm = config.clip_norm
        # waiting for new weights belongs to the update, not to the sums of gradients
        self._weight_owners = dataclasses.replace(replicas, part=Part.OPTIMIZER)
        self.buckets = make_buckets(
            parameters, replicas=replicas, completed_over=completed_over, numbers=bucket_numbers(replicas.size)
        )
        self._masters = [_master(bucket) for bucket in self.buckets]
        held = list(zip(self._masters, self.buckets, strict=True))
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

    def masters(self) -> Iterator[tuple[Piece, Tensor]]:
        """What this replica keeps fp32 values of, and the master whose piece it is."""
        for bucket, master in zip(self.buckets, self._masters, strict=True):
            for piece in bucket.pieces():
                yield piece, master

    def update(self, norm: Tensor) -> None:
        """Clips and steps. Collective over the replicas.

        Args:
            norm: of the whole gradient, scalar.
        """
        shares = [bucket.gradients[bucket.share] for bucket in self.buckets]
        clip_(shares, norm=norm, clip_norm=self._clip_norm)
        self.optimizer.step()
        self._refresh_weights()

    def load_finished(self, optimizer_step: int) -> None:
        """After masters and moments have been written. Collective over the replicas."""
        set_step_count(self.optimizer, optimizer_step)
        self._refresh_weights()

    def held_for_good(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor kept between steps, with the part of a memory plan that it belongs to."""
        for bucket, master in zip(self.buckets, self._masters, strict=True):
            yield "gradients", bucket.gradients
            yield "optimizer", master
            for moment in moments(self.optimizer, master):
                yield "optimizer", moment
            for parameter in bucket.parameters:  # after the master, which is a view of the same where weights are fp32
                yield "weights", parameter

    @torch.no_grad()
    def _refresh_weights(self) -> None:
        """Every replica's masters, rounded, on all of them."""
        for bucket, master in zip(self.buckets, self._masters, strict=True):
            if bucket.weights.dtype != master.dtype:
                bucket.weights[bucket.share].copy_(master)
        for arriving in [start_all_gather(bucket.weights, self._weight_owners) for bucket in self.buckets]:
            if arriving is not None:
                arriving.wait()


def _master(bucket: Bucket) -> Tensor:
    """fp32 values of this replica's share: of fp32 weights a view, of others a copy."""
    share = bucket.weights[bucket.share]
    return share if share.dtype == torch.float32 else share.float()
