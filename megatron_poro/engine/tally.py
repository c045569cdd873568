"""Adds up losses per source of the mixture over the microbatches of a step."""

import torch
from torch import Tensor

from megatron_poro.engine.objective import LossParts, Targets


class LossTally:
    """Sums of losses and of loss tokens per source; lives on the device until the step is over.

    Args:
        num_sources: sources of the mixture.
        device: where losses are computed.
    """

    def __init__(self, num_sources: int, device: torch.device) -> None:
        self.num_sources = num_sources
        self.values = torch.zeros(2, num_sources, device=device)

    def clear(self) -> None:
        """Starts a new step."""
        self.values.zero_()

    def add(self, parts: LossParts, targets: Targets) -> None:
        """Adds one microbatch."""
        self.values[0].index_add_(0, targets.sources, parts.sample_loss_sums.float())
        self.values[1].index_add_(0, targets.sources, targets.loss_mask.sum(dim=-1).float())

    @staticmethod
    def mean(values: Tensor) -> Tensor:
        """Loss over all sources from ``[2, num_sources]``; scalar fp32, NaN if there is no loss token."""
        return values[0].sum() / values[1].sum()
