"""What a model is: one schema per family. Sizes only; how it is cut over processes is in ``parallel``."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class AlibiForm(str, Enum):
    """How the ALiBi bias is computed."""

    DISTANCE = "distance"
    HISTORIC_BF16 = "historic_bf16"


@dataclass(kw_only=True)
class BloomConfig:
    """A BLOOM decoder: ALiBi, a norm after the embedding, interleaved per-head QKV, tanh GELU, a tied head."""

    family: str = "bloom"
    """Name of the model family; picks the schema and the code."""

    num_layers: int = MISSING
    """Number of transformer blocks."""

    hidden_size: int = MISSING
    """Width of the residual stream; the feed-forward layer is four times as wide."""

    num_heads: int = MISSING
    """Attention heads of the whole model; must divide hidden_size."""

    vocab_size: int = MISSING
    """Rows of the embedding matrix; at least the tokenizer's size. Must be divisible by parallel.tensor."""

    layer_norm_epsilon: float = 1e-5
    """Added to the variance in every LayerNorm."""

    init_std: float = 0.02
    """Standard deviation of the initial weights; the two output projections of a block use
    init_std / sqrt(2 * num_layers)."""

    hidden_dropout: float = 0.0
    """Probability of dropping an element of the residual stream (after the embedding, attention and feed-forward)."""

    attention_dropout: float = 0.0
    """Probability of dropping an attention weight."""

    alibi: AlibiForm = AlibiForm.DISTANCE
    """distance: slope * (key - query) in fp32. historic_bf16: slope * key position rounded to bf16, as
    Megatron-DeepSpeed trained BLOOM."""


MODEL_SCHEMAS: dict[str, type] = {"bloom": BloomConfig}
"""Schema of each family; a file of the config group ``model`` starts from ``<family>_schema``."""
