"""Hugging Face folder -> checkpoint: masters are the weights, moments are zero, step is 0.

The same name table as in the export, read the other way: import after export gives the same tensors, and export after
import the same bytes. One tensor is in memory at a time. A tensor that is missing, unknown or of another shape is
refused; nothing is guessed.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from megatron_poro.checkpoint.fragment import ChunkedTensor, Piece
from megatron_poro.checkpoint.importing import (
    precision_of,
    read_description,
    read_json,
    read_pickled,
    refuse,
    write_import,
)
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.errors import CheckpointError
from megatron_poro.models.bloom_names import PREFIX, TensorName

HEAD = "lm_head.weight"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_NAMES_OF_FORMATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class StoredTensor:
    """A tensor in a file: its shape and format are known, its elements are read on demand."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, read: Callable[[], Tensor]) -> None:
        self.shape, self.dtype, self.read = shape, dtype, read


def import_hugging_face(folder: Path | str, store: CheckpointStore) -> Path:
    """Writes a Hugging Face model as the checkpoint of step 0 of a run.

    Args:
        folder: with ``config.json``, a tokenizer and weights, in ``.safetensors`` or ``.bin`` files, sharded or not.
        store: checkpoints of the run that is to go on from it.

    Returns:
        The step folder.

    Raises:
        CheckpointError: if the folder is not such a model, or the checkpoint cannot be written.
        DataError: if its tokenizer is missing or damaged.
    """
    folder = Path(folder)
    description = read_description(folder)
    stored = _match(folder, _stored_tensors(folder), description.tables.tensors(description.model))
    masters = {
        name: ChunkedTensor(tensor.shape, [Piece((0,) * len(tensor.shape), tensor.shape, partial(_as_master, tensor))])
        for name, tensor in stored.items()
    }
    return write_import(store, masters, description, precision=precision_of({t.dtype for t in stored.values()}))


def _as_master(tensor: StoredTensor) -> Tensor:
    return tensor.read().float()


def _match(folder: Path, found: dict[str, StoredTensor], names: list[TensorName]) -> dict[str, StoredTensor]:
    """The folder's tensors under our names; each exactly once and of the right shape."""
    # files of the bare model, without a head, leave the prefix out
    found = {
        name if name == HEAD or name.startswith(PREFIX) else PREFIX + name: tensor for name, tensor in found.items()
    }
    head = found.pop(HEAD, None)
    expected = {name.hugging_face: name for name in names}
    complaints = [
        *(f"it has no {name}" for name in expected if name not in found),
        *(f"{name} is unknown" for name in found if name not in expected),
        *(
            f"{name} is {list(found[name].shape)}, config.json asks for {list(expected[name].shape)}"
            for name in expected
            if name in found and found[name].shape != expected[name].shape
        ),
        *(
            f"{name} is {found[name].dtype}, only float formats are read"
            for name in expected
            if name in found and not found[name].dtype.is_floating_point
        ),
    ]
    if not complaints and head is not None and not torch.equal(head.read(), found[names[0].hugging_face].read()):
        complaints.append(f"{HEAD} is not equal to {names[0].hugging_face}, to which a BLOOM model's head is tied")
    refuse(folder, complaints)
    return {name.canonical: found[name.hugging_face] for name in names}


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by its name there."""
    for weights in _WEIGHTS:
        index = folder / f"{weights}.index.json"
        if index.is_file():
            files = sorted(set(read_json(index)["weight_map"].values()))
        elif (folder / weights).is_file():
            files = [weights]
        else:
            continue
        tensors: dict[str, StoredTensor] = {}
        for file in files:
            tensors.update(
                _in_safetensors(folder / file) if file.endswith(".safetensors") else _in_pickle(folder / file)
            )
        return tensors
    raise CheckpointError(f"{folder} has no weights: none of {', '.join(_WEIGHTS)} or their index is there.")


def _in_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file: Any = safe_open(path, framework="pt")
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # the library's own error has no public name in older releases
        raise CheckpointError(f"{path} cannot be read ({error}): fetch it again.") from error
    return {
        name: StoredTensor(
            tuple(part.get_shape()),
            _NAMES_OF_FORMATS.get(part.get_dtype(), torch.uint8),
            partial(file.get_tensor, name),
        )
        for name, part in parts.items()
    }


def _in_pickle(path: Path) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(tuple(tensor.shape), tensor.dtype, partial(torch.clone, tensor))
        for name, tensor in read_pickled(path).items()
    }
