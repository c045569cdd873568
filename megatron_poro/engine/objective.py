"""What a training step minimises: the seam between engines and objectives (next token, SFT, DPO)."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from megatron_poro.data.batch import Batch
from megatron_poro.parallel.groups import AxisGroup


class Targets(NamedTuple):
    """What the last stage needs to judge the model's output; a tuple of tensors so that a pipeline can carry it.

    Attributes:
        labels: int64 ``[b, s]``.
        loss_mask: fp32 ``[b, s]``.
        sources: int64 ``[b]``.
    """

    labels: Tensor
    loss_mask: Tensor
    sources: Tensor


class LossParts(NamedTuple):
    """The loss of one microbatch before any average is taken.

    Attributes:
        loss_sum: scalar fp32 with a graph: the sum of the weighted losses.
        sample_loss_sums: fp32 ``[b]``, detached: each sample's share of ``loss_sum``.
    """

    loss_sum: Tensor
    sample_loss_sums: Tensor


class Objective(Protocol):
    """Splits a batch into model input and targets, and turns logits into a loss."""

    def split(self, batch: Batch) -> tuple[Tensor, Targets]:
        """Model input ``[b, s]`` and targets of a batch."""
        ...

    def weight(self, targets: Targets) -> Tensor:
        """How much of the step this microbatch is: scalar fp32, for next-token its number of loss tokens.

        The engine divides the sum of all microbatches' losses by the sum of their weights over the global batch.
        """
        ...

    def loss(self, logits: Tensor, targets: Targets) -> LossParts:
        """Loss of logits ``[b, s, v/tp]`` against targets."""
        ...


ObjectiveFactory = Callable[[AxisGroup, bool], Objective]
"""Makes an objective for a tensor group; the second argument says whether it may compile its loss."""
