"""A trained model in one process, from wherever it is: a run folder, a checkpoint, or an exported folder."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_poro.checkpoint.hf_format import format_of
from megatron_poro.checkpoint.locating import checkpoint_at
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.config.model import BloomConfig
from megatron_poro.errors import CheckpointError, ConfigError
from megatron_poro.models.causal_lm import CausalLM, whole_model
from megatron_poro.tokenizer.tokenizer import Tokenizer

CONTEXT_TOKENS = 2048
"""Context of an export, whose config does not say what the model was trained with; ALiBi sets no limit of its own."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what belongs to it.

    Attributes:
        model: in evaluation mode, without dropout.
        tokenizer: of its text.
        context_tokens: tokens it is shown at once.
        origin: the folder it was read from.
    """

    model: CausalLM
    tokenizer: Tokenizer
    context_tokens: int
    origin: Path


def load_model(
    path: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Loads a model; a checkpoint and an export of it load to the same one.

    Args:
        path: a run folder (its newest checkpoint is taken), a step folder, or an export.
        device: where the model will live.
        dtype: format it computes in.

    Raises:
        CheckpointError: if the folder is none of these, or is damaged.
        DataError: if its tokenizer is missing or damaged.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        sizes, tensors = _read_export(path)
        return LoadedModel(
            _filled(path, sizes, tensors, device=device, dtype=dtype), Tokenizer.load(path), CONTEXT_TOKENS, path
        )
    reader = CheckpointReader(checkpoint_at(path))
    # rounded as the engine rounds them: this is the model that was trained
    weights = ((name, master.to(reader.dtype)) for name, master in reader.masters())
    return LoadedModel(
        _filled(reader.path, reader.model, weights, device=device, dtype=dtype),
        reader.tokenizer,
        int(reader.setting("data.sequence_length", CONTEXT_TOKENS)),
        reader.path,
    )


def _filled(
    origin: Path,
    sizes: BloomConfig,
    weights: Iterable[tuple[str, Tensor]],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> CausalLM:
    """A model with weights given by canonical name, one of them in memory beside it at a time."""
    model = whole_model(sizes, seed=None, device=device, dtype=dtype)
    missing = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights:
            parameter = missing.pop(name, None)
            if parameter is None or parameter.shape != weight.shape:
                raise CheckpointError(
                    f"{origin} holds {name} of shape {list(weight.shape)}, which is not its config's."
                )
            parameter.copy_(weight)
    if missing:
        raise CheckpointError(f"{origin} has no {next(iter(missing))} (and {len(missing) - 1} more): fetch it again.")
    return model.eval()


def _read_export(folder: Path) -> tuple[BloomConfig, Iterable[tuple[str, Tensor]]]:
    """Sizes and tensors of an export, by canonical name."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tables = format_of(str(config.get("model_type")))
        sizes = tables.from_config(config)
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{folder}/config.json is not the config of a model ({error}).") from error
    names = {tensor.hugging_face: tensor.canonical for tensor in tables.tensors(sizes)}
    return sizes, _tensors_in(folder, names)


def _tensors_in(folder: Path, names: dict[str, str]) -> Iterable[tuple[str, Tensor]]:
    """Each tensor of a folder's safetensors files under its canonical name; a tied head beside them is left out."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as opened:
                file: Any = opened
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if name in names:
                        yield names[name], file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): export or fetch it again.") from error
