"""What an engine adds up over the microbatches and processes of a step besides gradients: losses, squares of gradients.

Two implementations. :class:`PlainSums` lets every sum run as it comes, in fp32, and leaves gradients to whoever adds
them up (:class:`~megatron_poro.engine.gradient_sums.ScatteredSums`, or one process by itself).
:class:`~megatron_poro.engine.exact_sums.ExactSums` gives the same bits whatever the order and the grouping.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from megatron_poro.engine.gradients import sum_of_squares
from megatron_poro.engine.objective import LossParts, Targets
from megatron_poro.parallel.collectives import all_reduce
from megatron_poro.parallel.groups import ParallelGroups

Gradients = Iterable[tuple[nn.Parameter, Tensor]]
"""Parameters of this process with their fp32 gradients."""


class StepTotals(NamedTuple):
    """Sums over the whole grid, the same on every process.

    Attributes:
        loss: weighted mean, scalar fp32; NaN if nothing has weight.
        grad_norm: global L2 norm, scalar fp32.
        source_loss_sums: fp32 ``[num_sources]``.
        source_weights: fp32 ``[num_sources]``.
    """

    loss: Tensor
    grad_norm: Tensor
    source_loss_sums: Tensor
    source_weights: Tensor


class StepSums(Protocol):
    """The sums of one step. What is collective is called by every process of the grid alike."""

    def start_step(self, weights: Sequence[Tensor]) -> None:
        """Forgets the last step. Collective over the processes that compute a loss.

        Args:
            weights: of this process's microbatches; empty where it computes no loss.
        """
        ...

    def start_evaluation(self) -> None:
        """Forgets the last losses."""
        ...

    def add_losses(self, parts: LossParts, targets: Targets) -> Tensor:
        """Notes the losses of a microbatch; returns the scalar to call backward on."""
        ...

    def totals(self, gradients: Gradients) -> StepTotals:
        """Losses and gradient norm of the step. Collective.

        Args:
            gradients: reduced. Plain sums want this replica's share of them, exact ones the whole.
        """
        ...


class PlainSums:
    """Sums in fp32 in the order in which their terms come; gradients are left to others.

    Args:
        groups: the process grid.
        has_loss: whether this process computes the loss.
        counts_in_norm: whether this process adds a parameter to the gradient norm.
        num_sources: sources of the mixture.
        device: where losses are computed.
    """

    def __init__(
        self,
        groups: ParallelGroups,
        *,
        has_loss: bool,
        counts_in_norm: Callable[[nn.Parameter], bool],
        num_sources: int,
        device: torch.device,
    ) -> None:
        self._groups, self._has_loss = groups, has_loss
        self._counts_in_norm, self._device = counts_in_norm, device
        self._sources = torch.zeros(2, num_sources, device=device)  # losses, weights
        self._loss_scale = torch.ones((), device=device)

    def start_step(self, weights: Sequence[Tensor]) -> None:
        self._sources.zero_()
        if self._has_loss:
            total = all_reduce(torch.stack(list(weights)).to(self._device).sum(), self._groups.data)
            self._loss_scale = 1.0 / total

    def start_evaluation(self) -> None:
        self._sources.zero_()

    def add_losses(self, parts: LossParts, targets: Targets) -> Tensor:
        self._sources[0].index_add_(0, targets.sources, parts.sample_loss_sums.float())
        self._sources[1].index_add_(0, targets.sources, targets.loss_mask.sum(dim=-1).float())
        return parts.loss_sum * self._loss_scale

    def totals(self, gradients: Gradients) -> StepTotals:
        """Sums over the replicas, each with a share of the gradient and the losses of its samples, and then over
        each replica's stages and tensor ranks: every element of the gradient is counted once.
        """
        squares = sum_of_squares((g for p, g in gradients if self._counts_in_norm(p)), self._device)
        packed = all_reduce(torch.cat([squares.view(1), self._sources.view(-1)]), self._groups.data)
        if not (self._has_loss and self._groups.tensor.rank == 0):
            packed[1:].zero_()
        all_reduce(packed, self._groups.replica)
        losses, weights = packed[1:].view_as(self._sources)
        return StepTotals(losses.sum() / weights.sum(), packed[0].sqrt(), losses, weights)
