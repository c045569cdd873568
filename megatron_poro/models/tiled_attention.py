"""Causal attention with ALiBi by tiles of queries, for compiled code on a CPU: what the mask hides is left out.

A tile is some queries and all keys up to the last of them. Between its matrix products a compiler makes one pass over
the tile forward (after one that looks for the largest score of each query) and one backward. Weights are kept in the
inputs' format as the exponentials that they are; what they are divided by is applied to rows of queries, which are
narrower. PyTorch's own flash kernel keeps nothing and computes them again, which takes a CPU longer.

Uncompiled it computes the same, slowly.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_poro.models.tiles import tile_bounds


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, *, historic: bool) -> Tensor:
    """Attention of each head of each sample.

    Shapes:
        query, key, value ``[b, n/tp, s, d]``, slopes fp32 ``[n/tp]`` -> ``[b, n/tp, s, d]``, in the inputs' format.

    Args:
        query, key, value: of any format.
        slopes: of ALiBi.
        historic: whether ``slope * key position`` is rounded to bf16 before it is added.
    """
    attended: Tensor = _TiledAttention.apply(query, key, value, slopes, historic)  # type: ignore[no-untyped-call]
    return attended


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, historic: bool) -> Tensor:
        length, size = query.shape[-2:]
        ctx.scale = 1.0 / math.sqrt(size)
        positions = torch.arange(length, dtype=torch.float32, device=query.device)
        key_rows = key.transpose(-1, -2).contiguous()  # [b, n/tp, d, s]
        attended, weights, sums = [], [], []
        for first, last in tile_bounds(length):
            products = query[..., first:last, :] @ key_rows[..., :last]
            scores = products.float() * ctx.scale + _bias(slopes, positions[:last], last, historic=historic)
            scores = torch.where(positions[:last] > positions[first:last, None], -torch.inf, scores)
            exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
            sums.append(exponentials.sum(dim=-1, keepdim=True))
            weights.append(exponentials.to(query.dtype))
            attended.append(((weights[-1] @ value[..., :last, :]).float() / sums[-1]).to(query.dtype))
        result = torch.cat(attended, dim=-2)
        ctx.save_for_backward(query, key, value, result, *weights, *sums)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, result, *kept = ctx.saved_tensors
        weights, sums = kept[: len(kept) // 2], kept[len(kept) // 2 :]
        length = query.shape[-2]
        value_rows = value.transpose(-1, -2).contiguous()  # [b, n/tp, d, s]
        of_query, of_key, of_value = [], torch.zeros((), device=query.device), torch.zeros((), device=query.device)
        for (first, last), weight, total in zip(tile_bounds(length), weights, sums, strict=True):
            gradient = gradients[0][..., first:last, :].float() / total
            offset = (gradient * result[..., first:last, :].float()).sum(dim=-1, keepdim=True)
            rows = gradient.to(query.dtype)
            of_weights = (rows @ value_rows[..., :last]).float()
            of_products = (weight.float() * ((of_weights - offset) * ctx.scale)).to(query.dtype)
            of_query.append(of_products @ key[..., :last, :])
            after = (0, 0, 0, length - last)  # keys that no query of the tile sees
            of_key = of_key + F.pad((of_products.transpose(-1, -2) @ query[..., first:last, :]).float(), after)
            of_value = of_value + F.pad((weight.transpose(-1, -2) @ rows).float(), after)
        return torch.cat(of_query, dim=-2), of_key.to(query.dtype), of_value.to(query.dtype), None, None


def _bias(slopes: Tensor, positions: Tensor, last: int, *, historic: bool) -> Tensor:
    """ALiBi of the keys of a tile but for a constant per query, which no softmax sees; fp32 ``[n/tp, 1, keys]``."""
    slopes = slopes.view(-1, 1, 1)
    if historic:
        return (slopes * positions).bfloat16().float() - slopes * last
    return slopes * (positions - last)
