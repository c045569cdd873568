"""A microbatch on its way to the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_poro.data.source import Sample


@dataclass(frozen=True)
class Batch:
    """Samples of one microbatch, on the host.

    Attributes:
        tokens: int64 ``[b, s]``, what the model reads.
        labels: int64 ``[b, s]``, the token that follows each of them.
        loss_mask: fp32 ``[b, s]``, weight of each label in the loss (1 counts, 0 does not).
        sources: int64 ``[b]``, which source of the mixture each sample came from (its position in the mixture).
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    sources: Tensor


def collate(samples: Sequence[tuple[Sample, int]]) -> Batch:
    """Joins samples of one length, each with the position of its source.

    Args:
        samples: at least one; tokens ``[s + 1]`` each.
    """
    stream = torch.from_numpy(np.stack([sample.tokens for sample, _ in samples]))  # [b, s + 1]
    loss_mask = torch.ones(stream.shape[0], stream.shape[1] - 1, dtype=torch.float32)  # [b, s]
    for row, (sample, _) in enumerate(samples):
        if sample.loss_mask is not None:
            loss_mask[row] = torch.from_numpy(sample.loss_mask)
    return Batch(
        tokens=stream[:, :-1].contiguous(),
        labels=stream[:, 1:].contiguous(),
        loss_mask=loss_mask,
        sources=torch.tensor([source for _, source in samples], dtype=torch.int64),
    )
