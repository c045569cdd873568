"""What every import ends in: weights that came from elsewhere become the checkpoint of step 0 of a run."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf

from megatron_poro.checkpoint.fragment import ChunkedTensor, Piece, tensor_key
from megatron_poro.checkpoint.hf_files import CONFIG_NAME
from megatron_poro.checkpoint.hf_format import HuggingFaceFormat, format_of, special_ids
from megatron_poro.checkpoint.saving import write_checkpoint
from megatron_poro.checkpoint.state import RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.fields import plain
from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import Precision
from megatron_poro.engine.engine import FragmentKind
from megatron_poro.errors import CheckpointError, ConfigError
from megatron_poro.parallel.agreement import World
from megatron_poro.parallel.topology import Topology
from megatron_poro.tokenizer.tokenizer import Tokenizer


class Description(NamedTuple):
    """What weights are of.

    Attributes:
        tables: names and settings of its family.
        model: its sizes.
        tokenizer: what its ids mean.
    """

    tables: HuggingFaceFormat
    model: BloomConfig
    tokenizer: Tokenizer


def read_description(folder: Path) -> Description:
    """Reads ``config.json`` and the tokenizer of a folder, which must be of one model.

    Raises:
        CheckpointError: if the config is missing, damaged or of another kind of model, or names other ids.
        DataError: if the tokenizer is missing or damaged.
    """
    config = read_json(folder / CONFIG_NAME)
    tables = format_of(str(config.get("model_type")))
    try:
        model = tables.from_config(config)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise CheckpointError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} ids, config.json has vocab_size={model.vocab_size}."
        )
    for role, ours in special_ids(tokenizer)._asdict().items():
        theirs = config.get(f"{role}_token_id", ours)
        if theirs != ours:
            raise CheckpointError(f"{folder}: config.json has {role}_token_id={theirs}, its tokenizer has {ours}.")
    return Description(tables, model, tokenizer)


def write_import(
    store: CheckpointStore, masters: Mapping[str, ChunkedTensor], description: Description, *, precision: Precision
) -> Path:
    """Writes weights as the checkpoint of step 0; moments are zero.

    Args:
        store: checkpoints of the run that is to go on from it.
        masters: each parameter by canonical name, in fp32; the chunks are made when they are written.
        description: what they are of.
        precision: what an export rounds them to.

    Returns:
        The step folder.

    Raises:
        CheckpointError: if it cannot be written.
    """
    values: dict[str, ChunkedTensor] = {}
    for name, master in masters.items():
        moment = Piece((0,) * len(master.shape), tuple(master.shape), partial(torch.zeros, tuple(master.shape)))
        values[tensor_key(FragmentKind.MASTER, name)] = master
        for kind in (FragmentKind.EXP_AVG, FragmentKind.EXP_AVG_SQ):
            values[tensor_key(kind, name)] = ChunkedTensor(master.shape, [moment])
    settings = {"model": plain(description.model), "engine": {"precision": precision.value}}
    state = RunState(
        step=0,
        consumed_samples=0,
        consumed_tokens=0,
        optimizer_step=0,
        config=OmegaConf.to_yaml(OmegaConf.create(settings)),
        identity=description.tables.identity(description.model),
        topology=Topology(),
        tokenizer_fingerprint=description.tokenizer.fingerprint,
    )
    return write_checkpoint(store, values, state, world=World(), tokenizer=description.tokenizer)


def precision_of(formats: set[torch.dtype]) -> Precision:
    """What a run computes in that goes on from weights of these formats: bf16 only if it loses nothing."""
    return Precision.BF16 if formats == {torch.bfloat16} else Precision.FP32


def read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that ``torch.save`` wrote, by name; they are read when they are used.

    Nothing in the file is run: what is not tensors and plain containers is refused.

    Raises:
        CheckpointError: if the file cannot be read or holds something else.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever its unpickler met
        raise CheckpointError(f"{path} cannot be read ({str(error).partition(chr(10))[0]}): fetch it again.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds something else than tensors by name: it is not a file of weights.")
    return {str(name): tensor for name, tensor in tensors.items()}


def refuse(folder: Path, complaints: list[str]) -> None:
    """Raises one error for all that is wrong with the weights in a folder, if there is anything.

    Raises:
        CheckpointError: with the first three complaints.
    """
    if complaints:
        more = f" (and {len(complaints) - 3} more)" if len(complaints) > 3 else ""
        raise CheckpointError(f"{folder} is not the model of its config.json: {'; '.join(complaints[:3])}{more}.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: if the file is missing or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): it is not a Hugging Face model.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object: fetch it again.")
    return content
