"""The vocabulary cut over the tensor group: embedding, head and cross entropy. The full logits exist nowhere.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (embedding and the fused cross entropy).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_poro.errors import TopologyError
from megatron_poro.parallel.collectives import all_reduce, copy_to_group, reduce_from_group
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.sequence import linear_of_cut_sequence, reduce_to_cut_sequence
from megatron_poro.parallel.shards import Initial, ShardSpec, new_parameter
from megatron_poro.parallel.ties import tied_use


class VocabParallelEmbedding(nn.Module):
    """Token ids to vectors; each rank holds a contiguous range of the vocabulary.

    Shapes:
        tokens int64 ``[b, s]`` -> ``[b, s, h]``, the same on every rank, or with ``sequence`` each rank's positions
        ``[b, s/tp, h]``.

    Raises:
        TopologyError: if the group does not divide the vocabulary.
    """

    def __init__(
        self, vocab_size: int, hidden_size: int, *, group: AxisGroup, init_std: float, sequence: bool = False
    ) -> None:
        super().__init__()
        if vocab_size % group.size != 0:
            raise TopologyError(
                f"parallel.tensor={group.size} does not divide model.vocab_size={vocab_size}. "
                f"Use a vocabulary of {-(-vocab_size // group.size) * group.size} rows or another parallel.tensor."
            )
        self.group, self.cut_sequence = group, sequence and group.size > 1
        self.weight = new_parameter(
            ShardSpec((vocab_size, hidden_size), 0, group.rank, group.size), Initial(std=init_std)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.embedding(tokens, self.weight)
        local, elsewhere = _local_ids(tokens, self.weight.shape[0], self.group)
        vectors = F.embedding(local, self.weight).masked_fill(elsewhere.unsqueeze(-1), 0.0)
        if self.cut_sequence:
            return reduce_to_cut_sequence(vectors, self.group)  # [b, s/tp, h]
        return reduce_from_group(vectors, self.group)  # [b, s, h]


def vocab_parallel_head(embedding: VocabParallelEmbedding, hidden: Tensor) -> Tensor:
    """Logits by the tied embedding: ``[b, s, h]`` -> ``[b, s, v/tp]``, this rank's range of the vocabulary.

    Of an embedding with ``sequence`` the input is this rank's positions ``[b, s/tp, h]``.
    """
    if embedding.cut_sequence:
        return linear_of_cut_sequence(hidden, tied_use(embedding.weight), None, embedding.group)
    return F.linear(copy_to_group(hidden, embedding.group), tied_use(embedding.weight))


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor, group: AxisGroup) -> Tensor:
    """Cross entropy of each position, in fp32, without gathering the vocabulary.

    Called by every rank of the tensor group; the result is the same on all of them.

    Shapes:
        logits ``[b, s, v/tp]`` (any float format), labels int64 ``[b, s]`` -> fp32 ``[b, s]``.
    """
    loss: Tensor = _CrossEntropy.apply(logits, labels, group)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, group: AxisGroup) -> Tensor:
        local, elsewhere = _local_ids(labels, logits.shape[-1], group)
        # shift by the global maximum so that exp cannot overflow; fp32 from here on
        highest = all_reduce(logits.amax(dim=-1).float(), group, maximum=True)  # [b, s]
        shifted = logits.float() - highest.unsqueeze(-1)  # [b, s, v/tp]
        target = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(elsewhere, 0.0)
        probabilities = shifted.exp_()
        normalizer = all_reduce(probabilities.sum(dim=-1), group)
        target = all_reduce(target, group)
        probabilities /= normalizer.unsqueeze(-1)
        ctx.save_for_backward(probabilities, local, elsewhere)
        ctx.logits_dtype = logits.dtype
        return normalizer.log() - target  # [b, s]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        probabilities, local, elsewhere = ctx.saved_tensors
        # softmax minus one-hot, written over the saved softmax: the logits' gradient needs no second buffer
        hits = (~elsewhere).to(probabilities.dtype).unsqueeze(-1)
        probabilities.scatter_add_(-1, local.unsqueeze(-1), -hits)
        probabilities *= gradient.unsqueeze(-1)
        return probabilities.to(ctx.logits_dtype), None, None


def _local_ids(ids: Tensor, rows: int, group: AxisGroup) -> tuple[Tensor, Tensor]:
    """Ids relative to this rank's range, and which of them lie outside it (those are set to 0)."""
    local = ids - group.rank * rows
    elsewhere = (local < 0) | (local >= rows)
    return local.masked_fill(elsewhere, 0), elsewhere
