"""Writes a BLOOM as Megatron-DeepSpeed's training leaves it: a file for each layer and tensor rank.

Made from the layout that is published, not from the importer: the layers' numbers, the keys in their files, how each is
cut. Source: TurkuNLP/Megatron-DeepSpeed ``megatron/model``, DeepSpeed 0.8 ``runtime/pipe/module.py``.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

FIRST_BLOCK = 3
"""1 is the embedding; 0 and 2 are entries of the pipeline's list without weights."""

AFTER_BLOCKS = 2
"""From the last block to the final norm."""

COLUMN_PARALLEL = ("query_key_value", "dense_h_to_4h")
"""Layers whose output, and with it bias, is cut over tensor ranks."""

ROW_PARALLEL = ("self_attention.dense.weight", "dense_4h_to_h.weight")
"""Weights whose input is cut; their biases are whole on every rank."""


def write_megatron(
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    tensor_size: int,
    vocab_multiple: int = 1,
    drift: Mapping[tuple[str, int], float] | None = None,
    step: int = 144,
) -> Path:
    """Writes ``global_step<step>`` and what else is in and beside it.

    Args:
        folder: the folder to make.
        weights: of the model, by Hugging Face's names without ``transformer.``.
        tensor_size: tensor ranks.
        vocab_multiple: the embedding gets rows until their number is a multiple of it.
        drift: what is added to the copy of a tensor that a rank holds, by name and rank.
        step: iteration of the checkpoint.

    Returns:
        The step folder.
    """
    step_folder = folder / f"global_step{step}"
    step_folder.mkdir(parents=True)
    num_layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h."))
    for rank in range(tensor_size):
        files: dict[int, OrderedDict[str, Tensor]] = {}
        for name, tensor in weights.items():
            held = cut(name, padded(name, tensor, vocab_multiple), rank, tensor_size)
            layer, key = place(name, num_layers)
            files.setdefault(layer, OrderedDict())[key] = held + (drift or {}).get((name, rank), 0.0)
        for layer, content in files.items():
            torch.save(content, step_folder / f"layer_{layer:02d}-model_{rank:02d}-model_states.pt")
        torch.save({"iteration": step}, step_folder / f"mp_rank_{rank:02d}_model_states.pt")
    (folder / "latest").write_text(f"global_step{step}")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    return step_folder


def place(name: str, num_layers: int) -> tuple[int, str]:
    """The layer's number and the key in its file."""
    if name == "word_embeddings.weight":
        return 1, name
    if name.startswith("word_embeddings_layernorm."):
        return 1, name.replace("word_embeddings_layernorm.", "word_embeddings.norm.")
    if name.startswith("ln_f."):
        return FIRST_BLOCK + num_layers - 1 + AFTER_BLOCKS, name.removeprefix("ln_f.")
    _, block, key = name.split(".", 2)
    return FIRST_BLOCK + int(block), key


def padded(name: str, tensor: Tensor, vocab_multiple: int) -> Tensor:
    """The embedding with rows of nines to the next multiple; every other tensor as it is."""
    if name != "word_embeddings.weight" or len(tensor) % vocab_multiple == 0:
        return tensor
    rows = vocab_multiple - len(tensor) % vocab_multiple
    return torch.cat([tensor, torch.full((rows, tensor.shape[1]), 9.0, dtype=tensor.dtype)])


def cut(name: str, tensor: Tensor, rank: int, tensor_size: int) -> Tensor:
    """What a tensor rank holds, in memory of its own."""
    if name == "word_embeddings.weight" or any(part in name for part in COLUMN_PARALLEL):
        return tensor.chunk(tensor_size, dim=0)[rank].clone()
    if name.endswith(ROW_PARALLEL):
        return tensor.chunk(tensor_size, dim=1)[rank].clone()
    return tensor.clone()
