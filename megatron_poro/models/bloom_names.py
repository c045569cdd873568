"""BLOOM's names and settings at Hugging Face and here, as tables: what export and import read, in both directions.

Every tensor maps one to one and row for row. Query, key and value rows are interleaved per head in both; the head is
tied to the embedding and has no tensor of its own in either. transformers has no setting for the width of the
feed-forward layer (four times the hidden size) or the activation (tanh GELU): they are part of the architecture.

Source: transformers ``modeling_bloom``, ``configuration_bloom``; the fields are those of ``config.json`` of
LumiOpen/Poro-34B.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from megatron_poro.config.model import BloomConfig
from megatron_poro.errors import ConfigError

PREFIX = "transformer."

# Hugging Face's name, ours, shape; in the order of Hugging Face's state dict
_BEFORE = (
    ("word_embeddings.weight", "embedding.weight", ("v", "h")),
    ("word_embeddings_layernorm.weight", "embedding_norm.weight", ("h",)),
    ("word_embeddings_layernorm.bias", "embedding_norm.bias", ("h",)),
)
_BLOCK = (
    ("input_layernorm.weight", "attention_norm.weight", ("h",)),
    ("input_layernorm.bias", "attention_norm.bias", ("h",)),
    ("self_attention.query_key_value.weight", "attention.qkv.weight", ("3h", "h")),
    ("self_attention.query_key_value.bias", "attention.qkv.bias", ("3h",)),
    ("self_attention.dense.weight", "attention.out.weight", ("h", "h")),
    ("self_attention.dense.bias", "attention.out.bias", ("h",)),
    ("post_attention_layernorm.weight", "mlp_norm.weight", ("h",)),
    ("post_attention_layernorm.bias", "mlp_norm.bias", ("h",)),
    ("mlp.dense_h_to_4h.weight", "mlp.up.weight", ("4h", "h")),
    ("mlp.dense_h_to_4h.bias", "mlp.up.bias", ("4h",)),
    ("mlp.dense_4h_to_h.weight", "mlp.down.weight", ("h", "4h")),
    ("mlp.dense_4h_to_h.bias", "mlp.down.bias", ("h",)),
)
_AFTER = (
    ("ln_f.weight", "final_norm.weight", ("h",)),
    ("ln_f.bias", "final_norm.bias", ("h",)),
)

# Hugging Face's field, older names of it, our field
_FIELDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("hidden_size", ("n_embed",), "hidden_size"),
    ("n_layer", ("num_hidden_layers",), "num_layers"),
    ("n_head", ("num_attention_heads",), "num_heads"),
    ("vocab_size", (), "vocab_size"),
    ("layer_norm_epsilon", (), "layer_norm_epsilon"),
    ("initializer_range", (), "init_std"),
    ("hidden_dropout", (), "hidden_dropout"),
    ("attention_dropout", (), "attention_dropout"),
)
_OPTIONAL = ("layer_norm_epsilon", "initializer_range", "hidden_dropout", "attention_dropout")
# what this model is and cannot be otherwise
_FIXED: dict[str, Any] = {
    "architectures": ["BloomForCausalLM"],
    "model_type": "bloom",
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "masked_softmax_fusion": True,
    "slow_but_exact": False,
    "use_cache": True,
}
_MUST_BE = {"model_type": "bloom", "apply_residual_connection_post_layernorm": False, "tie_word_embeddings": True}


class TensorName(NamedTuple):
    """One tensor under both names.

    Attributes:
        hugging_face: ``transformer.h.7.mlp.dense_h_to_4h.weight``.
        canonical: ``blocks.7.mlp.up.weight``.
        shape: of the full tensor, the same on both sides.
    """

    hugging_face: str
    canonical: str
    shape: tuple[int, ...]


class SpecialIds(NamedTuple):
    """Token ids that a model's config names; None where the tokenizer has no such token."""

    bos: int | None
    eos: int | None
    pad: int | None


def bloom_tensors(model: BloomConfig) -> list[TensorName]:
    """Every tensor of a model, in Hugging Face's order."""
    sizes = {"v": model.vocab_size, "h": model.hidden_size, "3h": 3 * model.hidden_size, "4h": 4 * model.hidden_size}
    rows = [*_BEFORE]
    for number in range(model.num_layers):
        rows += [(f"h.{number}.{theirs}", f"blocks.{number}.{ours}", shape) for theirs, ours, shape in _BLOCK]
    rows += _AFTER
    return [TensorName(PREFIX + theirs, ours, tuple(sizes[size] for size in shape)) for theirs, ours, shape in rows]


def bloom_to_hugging_face(model: BloomConfig, *, dtype: str, special: SpecialIds, tensor_size: int) -> dict[str, Any]:
    """The content of ``config.json``.

    Args:
        model: sizes.
        dtype: format of the tensors as torch calls it (``bfloat16``). It is written under the name of transformers 4.x
            and of 5.x: a reader that does not find its own takes fp32.
        special: ids of the tokenizer.
        tensor_size: tensor-parallel size of the training; no more than a note while ``slow_but_exact`` is false.
    """
    fields = {theirs: getattr(model, ours) for theirs, _, ours in _FIELDS}
    ids = {"bos_token_id": special.bos, "eos_token_id": special.eos, "pad_token_id": special.pad}
    return dict(
        sorted({**_FIXED, **fields, **ids, "pretraining_tp": tensor_size, "dtype": dtype, "torch_dtype": dtype}.items())
    )


def bloom_as_read(model: BloomConfig, *, dtype: str, special: SpecialIds) -> dict[str, Any]:
    """What transformers must make of the ``config.json`` of a model: everything its BLOOM or its generation looks at.

    Written out, not made from the tables above, so that an error in these is found.
    """
    return {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "vocab_size": model.vocab_size,
        "layer_norm_epsilon": model.layer_norm_epsilon,
        "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": True,
        "slow_but_exact": False,
        "hidden_dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.init_std,
        "use_cache": True,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
        "dtype": dtype,
    }


def bloom_from_hugging_face(config: Mapping[str, Any]) -> BloomConfig:
    """The sizes in a ``config.json``.

    Raises:
        ConfigError: if a size is missing, or a setting asks for what this model is not.
    """
    for key, wanted in _MUST_BE.items():
        if config.get(key, wanted) != wanted:
            raise ConfigError(f"config.json has {key}={config[key]!r}; a BLOOM model here has {wanted!r}.")
    values = {}
    for theirs, older, ours in _FIELDS:
        spelling = next((name for name in (theirs, *older) if name in config), None)
        if spelling is not None:
            values[ours] = config[spelling]
        elif theirs not in _OPTIONAL:
            raise ConfigError(f"config.json has no {theirs}: it is not the config of a BLOOM model.")
    return BloomConfig(**values)


def bloom_identity(model: BloomConfig) -> dict[str, Any]:
    """What a ``config.json`` says about a model that a run which goes on from it must agree with, by config key.

    The deviation of the initial weights is not part of it: the weights are there.
    """
    known = {ours for _, _, ours in _FIELDS if ours != "init_std"} | {"family"}
    return {f"model.{key}": value for key, value in dataclasses.asdict(model).items() if key in known}
