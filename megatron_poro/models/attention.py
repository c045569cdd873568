"""Causal attention with ALiBi: one function, several kernels that must agree.

``eager`` is the reference: scores, bias, mask and softmax in fp32, as the formula reads. ``sdpa`` hands a bias tensor
to PyTorch's fused kernels. ``flash`` needs no bias tensor: queries get columns of ones and keys their bias, so that any
causal kernel adds it by itself and skips what the mask hides. ``tiled`` is the eager formula without what the mask
hides, for compiled code on a CPU (:mod:`~megatron_poro.models.tiled_attention`); uncompiled it is slow there. ``flex``
computes the bias inside a compiled kernel; torch 2.13 has no CPU backward for it, so it needs a GPU.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_poro.config.model import AlibiForm
from megatron_poro.config.run import AttentionBackend
from megatron_poro.errors import ConfigError
from megatron_poro.models.alibi import Alibi
from megatron_poro.models.tiled_attention import tiled_attention
from megatron_poro.parallel.rng import DropoutKey, dropout

_EXTRA_COLUMNS = 8
"""Head dimensions that ``flash`` adds: three are used, and kernels want a multiple of eight."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alibi: Alibi,
    *,
    backend: AttentionBackend,
    dropout_probability: float = 0.0,
    dropout_key: DropoutKey | None = None,
    tensor_rank: int = 0,
) -> Tensor:
    """Causal attention of this tensor rank's heads.

    Shapes:
        query, key, value ``[b, n/tp, s, d]`` -> ``[b, n/tp, s, d]``, in the inputs' format.
    """
    if backend is AttentionBackend.EAGER:
        return _eager(query, key, value, alibi, dropout_probability, dropout_key, tensor_rank)
    if backend is AttentionBackend.SDPA:
        return _sdpa(query, key, value, alibi)
    if backend is AttentionBackend.FLASH:
        return _flash(query, key, value, alibi)
    if backend is AttentionBackend.TILED:
        slopes = alibi.slopes.to(query.device)
        return tiled_attention(query, key, value, slopes, historic=alibi.form is AlibiForm.HISTORIC_BF16)
    if backend is AttentionBackend.FLEX:
        return _flex(query, key, value, alibi)
    raise ConfigError(f"engine.attention={backend.value} is not a kernel; choose_kernel() turns auto into one.")


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alibi: Alibi,
    dropout_probability: float,
    dropout_key: DropoutKey | None,
    tensor_rank: int,
) -> Tensor:
    bias, scale = alibi.bias(query.shape[-2], query.device), 1.0 / math.sqrt(query.shape[-1])
    # [b, n/tp, s, s]; the products have no name because nothing needs them any longer
    weights: Tensor = _Weights.apply(query @ key.transpose(-1, -2), bias, scale)  # type: ignore[no-untyped-call]
    return dropout(weights, dropout_probability, dropout_key, "attention", rank=tensor_rank) @ value


class _Weights(torch.autograd.Function):
    """Softmax of ``scale * products + bias`` over what is not in the future: computed in fp32, kept as it is used.

    Autograd by itself would keep the weights in fp32 beside the rounded ones, three times as many bytes in bf16.
    """

    @staticmethod
    def forward(ctx: Any, products: Tensor, bias: Tensor, scale: float) -> Tensor:
        scores = torch.add(bias, products, alpha=scale)  # fp32 [b, n/tp, s, s], converted and scaled on the way
        if bias.shape[-2] == 1:
            scores.masked_fill_(_future(scores.shape[-1], scores.device), -torch.inf)
        scores = scores.softmax(dim=-1)
        weights = scores.to(products.dtype)
        ctx.save_for_backward(weights)
        ctx.scale = scale
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        # sums in fp32, whatever the format of what it is given
        return torch._softmax_backward_data(gradients[0], weights, -1, weights.dtype).mul_(ctx.scale), None, None


def _sdpa(query: Tensor, key: Tensor, value: Tensor, alibi: Alibi) -> Tensor:
    length = query.shape[-2]
    bias = alibi.bias(length, query.device).masked_fill(_future(length, query.device), -torch.inf)  # [n/tp, s, s]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))


def _flash(query: Tensor, key: Tensor, value: Tensor, alibi: Alibi) -> Tensor:
    batch, heads, length, size = query.shape
    columns = alibi.key_columns(length, size, query.device, query.dtype)  # [n/tp, s, 3]
    columns = F.pad(columns, (0, _EXTRA_COLUMNS - columns.shape[-1])).expand(batch, -1, -1, -1)
    attended = F.scaled_dot_product_attention(
        torch.cat([query, query.new_ones(batch, heads, length, _EXTRA_COLUMNS)], dim=-1),
        torch.cat([key, columns], dim=-1),
        F.pad(value, (0, _EXTRA_COLUMNS)),  # kernels want values as wide as keys
        is_causal=True,
        scale=1.0 / math.sqrt(size),
    )
    return attended[..., :size]


def _flex(query: Tensor, key: Tensor, value: Tensor, alibi: Alibi) -> Tensor:
    kernel, causal_blocks = _flex_kernel(query.shape[-2], query.device)
    slopes = alibi.slopes.to(query.device)
    historic = alibi.form is AlibiForm.HISTORIC_BF16

    def biased(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        if historic:
            return score + (slopes[head] * column).bfloat16().float()
        return score + slopes[head] * (column - row)

    attended: Tensor = kernel(query, key, value, score_mod=biased, block_mask=causal_blocks)
    return attended


@functools.lru_cache(maxsize=4)
def _flex_kernel(length: int, device: torch.device) -> tuple[Any, Any]:
    """The compiled kernel and its causal block mask; imported here because it starts the compiler."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def causal(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return row >= column

    return torch.compile(flex_attention), create_block_mask(causal, None, None, length, length, device=str(device))


@functools.lru_cache(maxsize=4)
def _future(length: int, device: torch.device) -> Tensor:
    """True where the key comes after the query; bool ``[s, s]``."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
