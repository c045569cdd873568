"""BLOOM's tables against the model itself and the published facts of Poro 34B."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_poro.checkpoint.hf_export import plan_shards, shard_names
from megatron_poro.checkpoint.safetensors_file import tensor_bytes
from megatron_poro.config.model import BloomConfig
from megatron_poro.errors import ConfigError
from megatron_poro.models.bloom_names import (
    SpecialIds,
    bloom_from_hugging_face,
    bloom_identity,
    bloom_tensors,
    bloom_to_hugging_face,
)
from megatron_poro.models.causal_lm import whole_model

PORO_34B = BloomConfig(num_layers=54, hidden_size=7168, num_heads=56, vocab_size=128000)
IDS = SpecialIds(bos=1, eos=2, pad=3)
# every field of config.json of LumiOpen/Poro-34B (later branches) but _name_or_path and the version of the writer
PORO_34B_CONFIG = {
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["BloomForCausalLM"],
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout": 0.0,
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True,
    "model_type": "bloom",
    "n_head": 56,
    "n_layer": 54,
    "pad_token_id": 3,
    "pretraining_tp": 2,
    "slow_but_exact": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128000,
}


def test_poro_34b_has_653_tensors_of_34_216_949_760_parameters() -> None:
    tensors = bloom_tensors(PORO_34B)
    assert len(tensors) == 653
    assert sum(math.prod(tensor.shape) for tensor in tensors) == 34_216_949_760
    assert sum(tensor_bytes(tensor.shape, torch.bfloat16) for tensor in tensors) == 68_433_899_520


def test_the_table_names_just_the_parameters_of_the_model() -> None:
    model = whole_model(PORO_34B, seed=None, device="meta", dtype=torch.bfloat16)
    built = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert {tensor.canonical: tensor.shape for tensor in bloom_tensors(PORO_34B)} == built


def test_no_name_is_used_twice_and_the_head_has_none() -> None:
    tensors = bloom_tensors(PORO_34B)
    for names in ([tensor.hugging_face for tensor in tensors], [tensor.canonical for tensor in tensors]):
        assert len(set(names)) == 653
        assert not any("head" in name for name in names)


def test_poro_34b_is_dealt_to_the_published_14_files() -> None:
    shards = plan_shards(bloom_tensors(PORO_34B), dtype=torch.bfloat16, max_shard_bytes=5_000_000_000)
    sizes = [round(sum(tensor_bytes(t.shape, torch.bfloat16) for t in shard) / 1e9, 3) for shard in shards]
    assert sizes == [4.713, *[4.933] * 12, 4.522]
    assert shard_names(14)[0] == "model-00001-of-00014.safetensors"
    assert shard_names(1) == ["model.safetensors"]


def test_a_tensor_larger_than_a_file_gets_one_of_its_own() -> None:
    tensors = bloom_tensors(PORO_34B)[:3]
    shards = plan_shards(tensors, dtype=torch.bfloat16, max_shard_bytes=1000)
    assert [len(shard) for shard in shards] == [1, 1, 1]


def test_the_config_is_the_published_one_and_the_name_of_dtype_in_5x() -> None:
    written = bloom_to_hugging_face(PORO_34B, dtype="bfloat16", special=IDS, tensor_size=2)
    assert written == {**PORO_34B_CONFIG, "dtype": "bfloat16"}
    assert list(written) == sorted(written)


def test_the_config_reads_back() -> None:
    assert bloom_from_hugging_face(PORO_34B_CONFIG) == PORO_34B


def test_older_names_of_the_sizes_are_read() -> None:
    older = {"n_embed": 64, "num_attention_heads": 8, "num_hidden_layers": 3, "vocab_size": 100, "model_type": "bloom"}
    assert bloom_from_hugging_face(older) == BloomConfig(num_layers=3, hidden_size=64, num_heads=8, vocab_size=100)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", "llama"), ("apply_residual_connection_post_layernorm", True), ("tie_word_embeddings", False)],
)
def test_a_setting_of_another_model_is_refused_with_both_values(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"config.json has {key}={value!r}; a BLOOM model here has"):
        bloom_from_hugging_face({**PORO_34B_CONFIG, key: value})


@pytest.mark.parametrize("key", ["hidden_size", "n_layer", "n_head", "vocab_size"])
def test_a_missing_size_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"config.json has no {key}"):
        bloom_from_hugging_face({name: value for name, value in PORO_34B_CONFIG.items() if name != key})


def test_a_run_that_goes_on_from_an_import_must_agree_in_all_but_the_initial_weights() -> None:
    expected = bloom_identity(PORO_34B)
    assert bloom_identity(replace(PORO_34B, init_std=0.0048)) == expected
    assert bloom_identity(replace(PORO_34B, hidden_dropout=0.1)) != expected
    assert set(expected) == {
        "model.family",
        "model.num_layers",
        "model.hidden_size",
        "model.num_heads",
        "model.vocab_size",
        "model.layer_norm_epsilon",
        "model.hidden_dropout",
        "model.attention_dropout",
    }
