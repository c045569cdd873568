"""Megatron-DeepSpeed's ``layer_*`` files -> checkpoint, as Poro 34B and BLOOM were saved while they were trained.

A folder ``global_step<N>`` holds one file for each layer and tensor rank, ``layer_SS-model_TT-model_states.pt``. The
numbers SS count the entries of the pipeline's list, of which some have no weights; so a layer is told by the keys in
its files. Slices are laid side by side where they belong, without joining them in memory. What every tensor rank holds
alike is averaged, in fp32, because the copies of a long run drift apart; how far is reported for each of them. Rows of
the embedding past the vocabulary, which pad it to a multiple, are dropped.

The files say nothing of the number of heads, the norms' epsilon or the tokenizer; a folder with the ``config.json`` and
the tokenizer does. Rows of query, key and value are interleaved per head there as here.

Source: TurkuNLP/Megatron-DeepSpeed ``megatron/model/gpt_model.py``; DeepSpeed 0.8 ``runtime/pipe/module.py``
(``ckpt_layer_path``); transformers ``convert_bloom_original_checkpoint_to_pytorch.py``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from megatron_poro.checkpoint.fragment import ChunkedTensor, Piece
from megatron_poro.checkpoint.importing import precision_of, read_description, read_pickled, refuse, write_import
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.errors import CheckpointError

_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")

# Megatron's key: our name, and the dim along which tensor ranks hold slices; None is held alike by all
_EMBEDDING: dict[str, tuple[str, int | None]] = {
    "word_embeddings.weight": ("embedding.weight", 0),
    "word_embeddings.norm.weight": ("embedding_norm.weight", None),
    "word_embeddings.norm.bias": ("embedding_norm.bias", None),
}
_BLOCK: dict[str, tuple[str, int | None]] = {
    "input_layernorm.weight": ("attention_norm.weight", None),
    "input_layernorm.bias": ("attention_norm.bias", None),
    "self_attention.query_key_value.weight": ("attention.qkv.weight", 0),
    "self_attention.query_key_value.bias": ("attention.qkv.bias", 0),
    "self_attention.dense.weight": ("attention.out.weight", 1),
    "self_attention.dense.bias": ("attention.out.bias", None),
    "post_attention_layernorm.weight": ("mlp_norm.weight", None),
    "post_attention_layernorm.bias": ("mlp_norm.bias", None),
    "mlp.dense_h_to_4h.weight": ("mlp.up.weight", 0),
    "mlp.dense_h_to_4h.bias": ("mlp.up.bias", 0),
    "mlp.dense_4h_to_h.weight": ("mlp.down.weight", 1),
    "mlp.dense_4h_to_h.bias": ("mlp.down.bias", None),
}
_FINAL: dict[str, tuple[str, int | None]] = {
    "weight": ("final_norm.weight", None),
    "bias": ("final_norm.bias", None),
}


@dataclass(frozen=True)
class MegatronImport:
    """What an import made, and found.

    Attributes:
        checkpoint: the step folder.
        tensor_size: tensor ranks that the files are of.
        padding_rows: rows of the embedding that were dropped.
        drift: largest difference of an element between tensor ranks, of each parameter that all of them hold.
    """

    checkpoint: Path
    tensor_size: int
    padding_rows: int
    drift: Mapping[str, float]


@dataclass(frozen=True)
class _Parameter:
    """One parameter as the files hold it: a part, or a copy, for each tensor rank."""

    parts: list[Tensor]
    dim: int | None


def is_megatron(folder: Path | str) -> bool:
    """Whether a folder, or the newest checkpoint it names, holds ``layer_*`` files."""
    return _step_folder(Path(folder)) is not None


def import_megatron(folder: Path | str, store: CheckpointStore, *, described_by: Path | str) -> MegatronImport:
    """Writes a Megatron-DeepSpeed checkpoint's weights as the checkpoint of step 0 of a run.

    Args:
        folder: ``global_step<N>``, or the folder above with its ``latest``.
        store: checkpoints of the run that is to go on from it.
        described_by: folder with ``config.json`` and the tokenizer of the model.

    Raises:
        CheckpointError: if files or tensors are missing, unknown or of other sizes, or the checkpoint cannot be
            written.
        DataError: if the tokenizer is missing or damaged.
    """
    step_folder = _step_folder(Path(folder))
    if step_folder is None:
        raise CheckpointError(
            f"{folder} has no layer_SS-model_TT-model_states.pt files, nor a latest that leads to some."
        )
    description = read_description(Path(described_by))
    found, tensor_size = _parameters(step_folder)
    shapes = {name.canonical: name.shape for name in description.tables.tensors(description.model)}
    refuse(
        step_folder,
        [
            *(f"it has no {name}" for name in shapes if name not in found),
            *(f"{name} is not in it" for name in found if name not in shapes),
            *filter(None, (_complaint(name, found[name], shapes[name]) for name in shapes if name in found)),
        ],
    )
    masters = {name: _master(found[name], shape) for name, shape in shapes.items()}
    formats = {part.dtype for parameter in found.values() for part in parameter.parts}
    padded = sum(part.shape[0] for part in found["embedding.weight"].parts)
    return MegatronImport(
        checkpoint=write_import(store, masters, description, precision=precision_of(formats)),
        tensor_size=tensor_size,
        padding_rows=padded - description.model.vocab_size,
        drift={name: _drift(found[name].parts) for name in shapes if found[name].dim is None},
    )


def _step_folder(folder: Path) -> Path | None:
    """The folder that holds the files: this one, or the one its ``latest`` names."""
    candidates = [folder]
    if (folder / "latest").is_file():
        candidates.append(folder / (folder / "latest").read_text(encoding="utf-8").strip())
    return next((path for path in candidates if path.is_dir() and any(map(_numbers, path.iterdir()))), None)


def _numbers(path: Path) -> tuple[int, int] | None:
    """Layer and tensor rank of a file, if it is a layer's."""
    match = _FILE.fullmatch(path.name)
    return (int(match[1]), int(match[2])) if match else None


def _parameters(folder: Path) -> tuple[dict[str, _Parameter], int]:
    """Every parameter by canonical name, and the number of tensor ranks."""
    files = {numbers: path for path in folder.iterdir() if (numbers := _numbers(path)) is not None}
    tensor_size = 1 + max(rank for _, rank in files)
    layers = sorted({layer for layer, _ in files})
    missing = [(layer, rank) for layer in layers for rank in range(tensor_size) if (layer, rank) not in files]
    if missing:
        layer, rank = missing[0]
        raise CheckpointError(
            f"{folder} has files of {tensor_size} tensor ranks, but no layer_{layer:02d}-model_{rank:02d}-"
            "model_states.pt: fetch it again."
        )
    found: dict[str, _Parameter] = {}
    blocks = 0
    for layer in layers:
        parts = [read_pickled(files[layer, rank]) for rank in range(tensor_size)]
        table, prefix = _table(parts[0]), ""
        if table is _BLOCK:
            prefix, blocks = f"blocks.{blocks}.", blocks + 1
        for rank, part in enumerate(parts):
            if part.keys() != table.keys():
                odd = sorted(part.keys() ^ table.keys())[0]
                state = "an unknown" if odd in part else "no"
                raise CheckpointError(f"{files[layer, rank]} has {state} {odd}: it is not a layer of a BLOOM model.")
        for key, (name, dim) in table.items():
            if prefix + name in found:
                raise CheckpointError(f"{files[layer, 0]} holds a second {prefix + name}: which one counts is unknown.")
            found[prefix + name] = _Parameter([part[key] for part in parts], dim)
    return found, tensor_size


def _table(part: Mapping[str, Tensor]) -> dict[str, tuple[str, int | None]]:
    """What a layer is, by the keys in its files."""
    if "word_embeddings.weight" in part:
        return _EMBEDDING
    return _FINAL if part.keys() <= _FINAL.keys() else _BLOCK


def _complaint(name: str, parameter: _Parameter, shape: tuple[int, ...]) -> str:
    """What keeps the parts from being a parameter of this shape; empty if nothing does."""
    wanted = list(shape)
    if parameter.dim is not None:
        wanted[parameter.dim], rest = divmod(wanted[parameter.dim], len(parameter.parts))
        if name == "embedding.weight":  # may be padded: all ranks alike, and at least the vocabulary together
            rows = parameter.parts[0].shape[0]
            wanted[0], rest = rows, int(rows * len(parameter.parts) < shape[0])
        if rest:
            return f"{name} cannot be {list(shape)} in {len(parameter.parts)} parts {list(parameter.parts[0].shape)}"
    for rank, part in enumerate(parameter.parts):
        if list(part.shape) != wanted:
            return f"{name} is {list(part.shape)} on tensor rank {rank}, config.json asks for {wanted}"
        if not part.dtype.is_floating_point:
            return f"{name} is {part.dtype}, only float formats are read"
    return ""


def _master(parameter: _Parameter, shape: tuple[int, ...]) -> ChunkedTensor:
    """The parts in their places, in fp32, made when they are written."""
    if parameter.dim is None:
        return ChunkedTensor(shape, [Piece((0,) * len(shape), shape, partial(_mean, parameter.parts))])
    pieces, begin = [], 0
    for part in parameter.parts:
        size = min(part.shape[parameter.dim], shape[parameter.dim] - begin)
        if size > 0:
            offsets, sizes = [0] * len(shape), list(shape)
            offsets[parameter.dim], sizes[parameter.dim] = begin, size
            kept = part.narrow(parameter.dim, 0, size)
            pieces.append(Piece(tuple(offsets), tuple(sizes), partial(_as_master, kept)))
        begin += part.shape[parameter.dim]
    return ChunkedTensor(shape, pieces)


def _as_master(part: Tensor) -> Tensor:
    return part.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _mean(copies: list[Tensor]) -> Tensor:
    total = _as_master(copies[0])
    for copy in copies[1:]:
        total += copy.float()
    return total / len(copies)


def _drift(copies: list[Tensor]) -> float:
    """Largest difference between the copies of an element."""
    stacked = torch.stack([copy.float() for copy in copies])
    return (stacked.amax(dim=0) - stacked.amin(dim=0)).max().item()
