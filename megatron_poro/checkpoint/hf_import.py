"""Hugging Face folder -> checkpoint: masters are the weights, moments are zero, step is 0.

The same name table as in the export, read the other way: import after export gives the same tensors, and export after
import the same bytes. One tensor is in memory at a time. A tensor that is missing, unknown or of another shape is
refused; nothing is guessed.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from torch import Tensor

from megatron_poro.checkpoint.fragment import ChunkedTensor, Piece, tensor_key
from megatron_poro.checkpoint.hf_format import format_of, special_ids
from megatron_poro.checkpoint.saving import write_checkpoint
from megatron_poro.checkpoint.state import RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.fields import plain
from megatron_poro.config.run import Precision
from megatron_poro.engine.engine import FragmentKind
from megatron_poro.errors import CheckpointError, ConfigError
from megatron_poro.models.bloom_names import PREFIX, TensorName
from megatron_poro.parallel.agreement import World
from megatron_poro.parallel.topology import Topology
from megatron_poro.tokenizer.tokenizer import Tokenizer

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
    config = _read_json(folder / "config.json")
    tables = format_of(str(config.get("model_type")))
    try:
        model = tables.from_config(config)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    tokenizer = Tokenizer.load(folder)
    _require_same_ids(folder, config, tokenizer, model.vocab_size)
    stored = _match(folder, _stored_tensors(folder), tables.tensors(model))
    exact = all(tensor.dtype is torch.bfloat16 for tensor in stored.values())
    precision = Precision.BF16 if exact else Precision.FP32
    state = RunState(
        step=0,
        consumed_samples=0,
        consumed_tokens=0,
        optimizer_step=0,
        config=OmegaConf.to_yaml(OmegaConf.create({"model": plain(model), "engine": {"precision": precision.value}})),
        identity=tables.identity(model),
        topology=Topology(),
        tokenizer_fingerprint=tokenizer.fingerprint,
    )
    return write_checkpoint(store, _values(stored), state, world=World(), tokenizer=tokenizer, file_per_chunk=True)


def _values(stored: dict[str, StoredTensor]) -> dict[str, ChunkedTensor]:
    """Master and moments of each parameter, made when they are written."""
    values = {}
    for name, tensor in stored.items():
        origin = (0,) * len(tensor.shape)
        master = Piece(origin, tensor.shape, partial(_as_master, tensor))
        moment = Piece(origin, tensor.shape, partial(torch.zeros, tensor.shape))
        for kind in FragmentKind:
            piece = master if kind is FragmentKind.MASTER else moment
            values[tensor_key(kind, name)] = ChunkedTensor(tensor.shape, [piece])
    return values


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
    if complaints:
        more = f" (and {len(complaints) - 3} more)" if len(complaints) > 3 else ""
        raise CheckpointError(f"{folder} is not the model of its config.json: {'; '.join(complaints[:3])}{more}.")
    return {name.canonical: found[name.hugging_face] for name in names}


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by its name there."""
    for weights in _WEIGHTS:
        index = folder / f"{weights}.index.json"
        if index.is_file():
            files = sorted(set(_read_json(index)["weight_map"].values()))
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
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever its unpickler met
        raise CheckpointError(f"{path} cannot be read ({error}): fetch it again.") from error
    return {
        name: StoredTensor(tuple(tensor.shape), tensor.dtype, partial(torch.clone, tensor))
        for name, tensor in tensors.items()
    }


def _require_same_ids(folder: Path, config: dict[str, Any], tokenizer: Tokenizer, vocab_size: int) -> None:
    """The tokenizer in the folder must be the model's: its ids fit, and the special ones are those of the config."""
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} ids, config.json has vocab_size={vocab_size}."
        )
    for role, ours in special_ids(tokenizer)._asdict().items():
        theirs = config.get(f"{role}_token_id", ours)
        if theirs != ours:
            raise CheckpointError(f"{folder}: config.json has {role}_token_id={theirs}, its tokenizer has {ours}.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): it is not a Hugging Face model.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object: fetch it again.")
    return content
