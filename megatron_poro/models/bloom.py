"""BLOOM: a decoder with ALiBi, a LayerNorm right after the embedding, and a head tied to the embedding.

Residuals are taken before each norm. Query, key and value rows are interleaved per head (q, k, v of head 0, then of
head 1, ...), so a tensor shard is a contiguous range of heads, and weights equal Hugging Face's row for row. The tied
head uses the raw embedding matrix: the embedding's norm is a layer of its own and lives on the first stage only.

Source: BLOOM, arXiv:2211.05100; block as in Megatron-DeepSpeed and transformers ``modeling_bloom``.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import AttentionBackend, Recompute
from megatron_poro.models.activations import gelu_by_sigmoid
from megatron_poro.models.alibi import Alibi
from megatron_poro.models.attention import attention
from megatron_poro.models.norms import LayerNorm
from megatron_poro.models.plan import LayerEntry, LayerPlan
from megatron_poro.parallel.compiling import compiled
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.linear import ColumnParallelLinear, RowParallelLinear
from megatron_poro.parallel.rng import DropoutClock, DropoutKey, dropout
from megatron_poro.parallel.vocab import VocabParallelEmbedding, vocab_parallel_head


@dataclass(frozen=True)
class BlockOptions:
    """How blocks compute, as opposed to what.

    Attributes:
        backend: attention kernel, already chosen (not ``auto``).
        recompute: which activations are computed again in the backward pass.
        clock: source of dropout keys, shared by all layers of a process.
        sequence: whether tensor ranks share out the positions outside of attention and feed-forward: the residual
            stream ``[b, s, h]`` is then ``[b, s/tp, h]`` (:mod:`megatron_poro.parallel.sequence`).
        compiled: whether blocks go through ``torch.compile``.
    """

    backend: AttentionBackend = AttentionBackend.EAGER
    recompute: Recompute = Recompute.NONE
    clock: DropoutClock = field(default_factory=DropoutClock)
    sequence: bool = False
    compiled: bool = False

    def stream(self, group: AxisGroup) -> AxisGroup:
        """The processes that share out the positions of the residual stream, given the tensor group."""
        return group if self.sequence else AxisGroup.single()


def bloom_plan(model: BloomConfig, *, group: AxisGroup, options: BlockOptions) -> LayerPlan:
    """The layers of a BLOOM model for one tensor rank: embedding, its norm, blocks, final norm, tied head.

    Raises:
        ConfigError, TopologyError: where the tensor group does not divide heads or vocabulary.
    """
    alibi = Alibi(model.num_heads, form=model.alibi, group=group)
    width = model.hidden_size
    vocabulary = {
        "vocab_size": model.vocab_size, "hidden_size": width, "group": group, "init_std": model.init_std,
        "sequence": options.sequence,
    }  # fmt: skip
    stream = options.stream(group)
    block_cost = float(12 * width * width)
    blocks = [
        LayerEntry(
            role=f"blocks.{number}",
            module=BloomBlock,
            arguments={
                "model": model,
                "name": f"blocks.{number}",
                "group": group,
                "alibi": alibi,
                "options": options,
            },
            cost=block_cost,
            counts=True,
            is_block=True,
        )
        for number in range(model.num_layers)
    ]
    return LayerPlan(
        (
            LayerEntry(role="embedding", module=VocabParallelEmbedding, arguments=vocabulary, counts=True),
            LayerEntry(
                role="embedding_norm",
                module=EmbeddingNorm,
                arguments={"model": model, "clock": options.clock, "stream": stream},
            ),
            *blocks,
            LayerEntry(
                role="final_norm",
                module=LayerNorm,
                arguments={"hidden_size": width, "epsilon": model.layer_norm_epsilon, "stream": stream},
            ),
            LayerEntry(
                role="head",
                module=VocabParallelEmbedding,
                arguments=vocabulary,
                tied_to="embedding",
                forward=vocab_parallel_head,
                cost=float(model.vocab_size * width),
                counts=True,
            ),
        )
    )


class EmbeddingNorm(LayerNorm):
    """The norm and dropout between the embedding and the first block; ``[b, s, h]`` -> ``[b, s, h]``."""

    def __init__(self, *, model: BloomConfig, clock: DropoutClock, stream: AxisGroup) -> None:
        super().__init__(model.hidden_size, epsilon=model.layer_norm_epsilon, stream=stream)
        self.dropout, self.clock, self.stream = model.hidden_dropout, clock, stream

    def forward(self, hidden: Tensor) -> Tensor:
        key = self.clock.next_key("embedding_norm") if self.training and self.dropout > 0.0 else None
        return dropout(super().forward(hidden), self.dropout, key, "embedding", stream=self.stream)


class BloomAttention(nn.Module):
    """Self-attention of this rank's heads and the output projection; ``[b, s, h]`` -> ``[b, s, h]``."""

    def __init__(self, *, model: BloomConfig, group: AxisGroup, alibi: Alibi, options: BlockOptions) -> None:
        super().__init__()
        width = model.hidden_size
        self.head_size = width // model.num_heads
        self.alibi, self.options, self.group = alibi, options, group
        self.dropout = model.attention_dropout
        sequence = options.sequence
        self.qkv = ColumnParallelLinear(width, 3 * width, group=group, init_std=model.init_std, sequence=sequence)
        self.out = RowParallelLinear(width, width, group=group, init_std=_output_std(model), sequence=sequence)

    def forward(self, hidden: Tensor, key: DropoutKey | None) -> Tensor:
        packed = self.qkv(hidden)  # [b, s, 3*h/tp]
        b, s, _ = packed.shape
        qkv = packed.view(b, s, -1, 3, self.head_size)  # [b, s, n/tp, 3, d]
        query, keys, value = qkv.permute(3, 0, 2, 1, 4)  # each [b, n/tp, s, d]
        if self.options.recompute is Recompute.SELECTIVE and torch.is_grad_enabled():
            attended = checkpoint(self._attend, query, keys, value, key, use_reentrant=False, preserve_rng_state=False)
        else:
            attended = self._attend(query, keys, value, key)
        return self.out(attended.transpose(1, 2).reshape(b, s, -1))  # type: ignore[no-any-return]

    def _attend(self, query: Tensor, keys: Tensor, value: Tensor, key: DropoutKey | None) -> Tensor:
        return attention(
            query,
            keys,
            value,
            self.alibi,
            backend=self.options.backend,
            dropout_probability=self.dropout,
            dropout_key=key,
            tensor_rank=self.group.rank,
        )


class BloomMLP(nn.Module):
    """Feed-forward layer with tanh GELU, four times as wide; ``[b, s, h]`` -> ``[b, s, h]``."""

    def __init__(self, *, model: BloomConfig, group: AxisGroup, options: BlockOptions) -> None:
        super().__init__()
        width, sequence = model.hidden_size, options.sequence
        self.gelu = gelu_by_sigmoid if options.compiled else partial(F.gelu, approximate="tanh")
        self.up = ColumnParallelLinear(width, 4 * width, group=group, init_std=model.init_std, sequence=sequence)
        self.down = RowParallelLinear(4 * width, width, group=group, init_std=_output_std(model), sequence=sequence)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(self.gelu(self.up(hidden)))  # type: ignore[no-any-return]


class BloomBlock(nn.Module):
    """One transformer block; ``[b, s, h]`` -> ``[b, s, h]``, with ``options.sequence`` ``[b, s/tp, h]`` of each.

    With ``recompute=full`` only the block's input is kept and the block runs a second time in the backward pass.
    The dropout key is drawn before, so both passes draw the same masks.
    """

    def __init__(self, *, model: BloomConfig, name: str, group: AxisGroup, alibi: Alibi, options: BlockOptions) -> None:
        super().__init__()
        self.name, self.options = name, options
        self.dropout = model.hidden_dropout
        self.draws_masks = model.hidden_dropout > 0.0 or model.attention_dropout > 0.0
        self.stream = options.stream(group)
        self.attention_norm = LayerNorm(model.hidden_size, epsilon=model.layer_norm_epsilon, stream=self.stream)
        self.attention = BloomAttention(model=model, group=group, alibi=alibi, options=options)
        self.mlp_norm = LayerNorm(model.hidden_size, epsilon=model.layer_norm_epsilon, stream=self.stream)
        self.mlp = BloomMLP(model=model, group=group, options=options)

    def forward(self, hidden: Tensor) -> Tensor:
        key = self.options.clock.next_key(self.name) if self.training and self.draws_masks else None
        if self.options.recompute is Recompute.FULL and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(self._run, hidden, key, use_reentrant=False, preserve_rng_state=False)
            return recomputed
        return self._run(hidden, key)

    def _run(self, hidden: Tensor, key: DropoutKey | None) -> Tensor:
        if self.options.compiled:
            computed: Tensor = compiled(BloomBlock._compute)(self, hidden, key)
            return computed
        return self._compute(hidden, key)

    def _compute(self, hidden: Tensor, key: DropoutKey | None) -> Tensor:
        attended = self.attention(self.attention_norm(hidden), key)
        hidden = hidden + dropout(attended, self.dropout, key, "attention_residual", stream=self.stream)
        expanded = self.mlp(self.mlp_norm(hidden))
        return hidden + dropout(expanded, self.dropout, key, "mlp_residual", stream=self.stream)


def _output_std(model: BloomConfig) -> float:
    """Initial deviation of the two projections that write into the residual stream (Megatron's scaled init)."""
    return model.init_std / math.sqrt(2.0 * model.num_layers)
