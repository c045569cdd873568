"""The vocabulary cut over the tensor group: embedding, head and cross entropy. The full logits exist nowhere.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (embedding and the fused cross entropy).
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_poro.errors import TopologyError
from megatron_poro.parallel.collectives import all_reduce, reduce_from_group
from megatron_poro.parallel.compiling import compiled
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.linear import linear_of_whole_input
from megatron_poro.parallel.sequence import linear_of_cut_sequence, reduce_to_cut_sequence
from megatron_poro.parallel.shards import Initial, ShardSpec, new_parameter
from megatron_poro.parallel.ties import tied_use
from megatron_poro.parallel.weight_gradients import Deferrable

CHUNK_OF_A_CPU = 1 << 20
"""Logits that are computed with in fp32 at a time; few enough to stay in a CPU's cache."""

CHUNK_OF_A_GPU = 1 << 24
"""As many as keep a GPU busy for longer than it takes to start a kernel; 64 MiB of memory."""


class VocabParallelEmbedding(Deferrable):
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
    linear = linear_of_cut_sequence if embedding.cut_sequence else linear_of_whole_input
    return linear(hidden, tied_use(embedding.weight), None, embedding.group, embedding.deferred)


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor, group: AxisGroup, *, compiles: bool = False) -> Tensor:
    """Cross entropy of each position, in fp32, without gathering the vocabulary.

    Called by every rank of the tensor group; the result is the same on all of them. The backward pass writes the
    gradient over the logits, if they were computed and lie in a row: use them for nothing else afterwards. Beside them
    only a chunk of rows is ever held in fp32, or with ``compiles`` none: compiled code has those numbers in registers.

    Shapes:
        logits ``[b, s, v/tp]`` (any float format), labels int64 ``[b, s]`` -> fp32 ``[b, s]``.
    """
    loss: Tensor = _CrossEntropy.apply(logits, labels, group, compiles)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, group: AxisGroup, compiles: bool) -> Tensor:
        local, elsewhere = _local_ids(labels, logits.shape[-1], group)
        flat = logits.detach().flatten(0, -2)  # [b*s, v/tp]
        normalizer = compiled(_log_sum_exp)(flat) if compiles else _log_sum_exp_by_chunks(flat)
        normalizer = _over_group(normalizer, group).view(labels.shape)
        target = logits.gather(-1, local.unsqueeze(-1)).squeeze(-1).float().masked_fill(elsewhere, 0.0)
        target = all_reduce(target, group)
        ctx.save_for_backward(logits, local, elsewhere, normalizer, target)
        ctx.compiles = compiles
        return normalizer - target  # [b, s]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, local, elsewhere, normalizer, target = ctx.saved_tensors
        # the logits' gradient is written over the logits: nobody needs them any longer, and no second buffer is needed
        in_place = not logits.is_leaf and logits.is_contiguous()
        gradient = logits.detach() if in_place else logits.detach().clone(memory_format=torch.contiguous_format)
        flat, scale = gradient.view(-1, gradient.shape[-1]), gradients[0].flatten().unsqueeze(-1)
        scaled_softmax_ = compiled(_scaled_softmax_) if ctx.compiles else _scaled_softmax_by_chunks_
        scaled_softmax_(flat, normalizer.flatten().unsqueeze(-1), scale)
        # softmax minus one-hot, where the label is here; scatter_ would copy all logits
        places = torch.arange(len(flat), device=flat.device), local.flatten()
        of_target = (torch.expm1(target - normalizer).flatten() * scale.squeeze(-1)).to(flat.dtype)
        flat[places] = torch.where(elsewhere.flatten(), flat[places], of_target)
        return gradient, None, None, None


def _log_sum_exp(flat: Tensor) -> Tensor:
    """Logarithm of each row's sum of exponentials, for compiled code; ``[rows, v/tp]`` -> fp32 ``[rows]``."""
    wide = flat.float()
    highest = wide.amax(dim=-1)
    return highest + (wide - highest.unsqueeze(-1)).exp().sum(dim=-1).log()


def _log_sum_exp_by_chunks(flat: Tensor) -> Tensor:
    """:func:`_log_sum_exp` with a chunk of rows in fp32 at a time."""
    normalizer = torch.empty(len(flat), dtype=torch.float32, device=flat.device)
    for rows, scratch in _chunks(flat):
        highest = scratch.amax(dim=-1)  # so that exp cannot overflow
        summed = scratch.sub_(highest.unsqueeze(-1)).exp_().sum(dim=-1)
        torch.add(highest, summed.log_(), out=normalizer[rows])
    return normalizer


def _scaled_softmax_(flat: Tensor, normalizer: Tensor, scale: Tensor) -> None:
    """Writes each row's softmax times its scale over its logits, for compiled code.

    Shapes:
        flat ``[rows, v/tp]``, normalizer and scale fp32 ``[rows, 1]``.
    """
    flat.copy_((flat.float() - normalizer).exp() * scale)


def _scaled_softmax_by_chunks_(flat: Tensor, normalizer: Tensor, scale: Tensor) -> None:
    """:func:`_scaled_softmax_` with a chunk of rows in fp32 at a time."""
    for rows, scratch in _chunks(flat):
        flat[rows] = scratch.sub_(normalizer[rows]).exp_().mul_(scale[rows])


def _chunks(flat: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of rows of ``[rows, v/tp]`` and their fp32 copies, which share one memory: use one before the next."""
    limit = CHUNK_OF_A_CPU if flat.device.type == "cpu" else CHUNK_OF_A_GPU
    count = max(1, -(-flat.numel() // limit))  # as even as possible: a chunk of one row would be summed in other steps
    bounds = [len(flat) * number // count for number in range(count + 1)]
    memory = flat.new_empty(-(-len(flat) // count), flat.shape[-1], dtype=torch.float32)
    for first, last in pairwise(bounds):
        yield slice(first, last), memory[: last - first].copy_(flat[first:last])


def _over_group(normalizer: Tensor, group: AxisGroup) -> Tensor:
    """Logarithm of the sum of all ranks' exponentials, given that of each."""
    if group.size == 1:
        return normalizer
    highest = all_reduce(normalizer.clone(), group, maximum=True)
    return highest + all_reduce((normalizer - highest).exp_(), group).log_()


def _local_ids(ids: Tensor, rows: int, group: AxisGroup) -> tuple[Tensor, Tensor]:
    """Ids relative to this rank's range, and which of them lie outside it (those are set to 0)."""
    local = ids - group.rank * rows
    elsewhere = (local < 0) | (local >= rows)
    return local.masked_fill(elsewhere, 0), elsewhere
