"""What is in an export beside its tensors: the names of its files, which tensor goes into which, its two configs."""

from collections.abc import Sequence
from typing import Any

import torch

from megatron_poro.checkpoint.hf_format import format_of, special_ids
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.safetensors_file import tensor_bytes
from megatron_poro.models.bloom_names import TensorName
from megatron_poro.tokenizer.tokenizer import Tokenizer

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
INDEX_NAME = "model.safetensors.index.json"
# The files' layout is that of the release Poro 34B's branches were written with; later ones read it. A fixed text, so
# that an export does not depend on what happens to be installed.
TRANSFORMERS_VERSION = "4.35.0"


def plan_shards(names: Sequence[TensorName], *, dtype: torch.dtype, max_shard_bytes: int) -> list[list[TensorName]]:
    """Deals tensors to files, in order: a file is full when the next tensor would make it too large.

    Source: the rule of huggingface_hub ``split_state_dict_into_shards_factory``.
    """
    shards: list[list[TensorName]] = []
    filled = 0
    for name in names:
        size = tensor_bytes(name.shape, dtype)
        if not shards or filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def shard_names(count: int) -> list[str]:
    """Names of the tensor files: ``model-00001-of-00014.safetensors``, or ``model.safetensors`` if there is one."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def config_json(reader: CheckpointReader, tokenizer: Tokenizer) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint."""
    config = format_of(reader.model.family).to_config(
        reader.model,
        dtype=str(reader.dtype).removeprefix("torch."),
        special=special_ids(tokenizer),
        tensor_size=reader.state.topology.tensor,
    )
    return dict(sorted({**config, "transformers_version": TRANSFORMERS_VERSION}.items()))


def generation_config_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ``generation_config.json`` that goes with it."""
    ids = special_ids(tokenizer)
    return {
        "_from_model_config": True,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos,
        "pad_token_id": ids.pad,
        "transformers_version": TRANSFORMERS_VERSION,
    }
