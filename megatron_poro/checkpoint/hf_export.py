"""Checkpoint -> Hugging Face folder, one tensor in memory at a time: no process group, no GPU.

The masters are rounded to the run's format as the engine rounds them, so the exported model is the model that was
trained, bit for bit. The folder gets its name when everything in it is written, durable and proven equal to the
checkpoint; an export that is not proven is left beside it as ``<name>.failed``.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_poro.checkpoint.hf_format import format_of, special_ids
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.safetensors_file import TensorEntry, tensor_bytes, write_safetensors
from megatron_poro.checkpoint.state import software_versions
from megatron_poro.checkpoint.store import sync
from megatron_poro.errors import CheckpointError
from megatron_poro.models.bloom_names import TensorName
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.units import format_bytes

REPORT_NAME = "export_report.json"
CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
INDEX_NAME = "model.safetensors.index.json"
# The files' layout is that of the release Poro 34B's branches were written with; later ones read it. A fixed text, so
# that an export does not depend on what happens to be installed.
TRANSFORMERS_VERSION = "4.35.0"
MAX_SHARD_BYTES = 5_000_000_000
"""Of a checkpoint whose config does not say, such as an import."""

# headers, JSON files and a tokenizer
_BYTES_BESIDE = 32 << 20


@dataclass(frozen=True)
class Proof:
    """What a comparison of an export with its checkpoint found.

    Attributes:
        met: whether the export may be given its name.
        verdict: one sentence, with both numbers.
        measurements: everything that was measured, for the report.
    """

    met: bool
    verdict: str
    measurements: dict[str, Any]


@dataclass(frozen=True)
class Export:
    """An export that is complete.

    Attributes:
        folder: where it is.
        shards: number of tensor files.
        tensors: number of tensors.
        parameters: number of elements.
        tensor_bytes: bytes of all tensors.
        proof: what was compared, or None.
    """

    folder: Path
    shards: int
    tensors: int
    parameters: int
    tensor_bytes: int
    proof: Proof | None


def export_checkpoint(
    checkpoint: Path | str,
    output: Path | str,
    *,
    prove: Callable[[CheckpointReader, Path], Proof] | None,
    max_shard_bytes: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Export:
    """Writes a checkpoint as a Hugging Face model.

    Args:
        checkpoint: a step folder.
        output: the folder to make; it must not exist.
        prove: compares the written folder with the checkpoint; None leaves the export unproven, and says so in its
            report.
        max_shard_bytes: largest size of one file's tensors; a larger tensor gets a file of its own. None takes the
            run's ``export.max_shard_bytes``.
        tokenizer: instead of the one in the checkpoint.

    Raises:
        CheckpointError: if the checkpoint is damaged, the output exists or cannot be written, or the proof is not met.
        DataError: if there is no tokenizer.
    """
    output = Path(output)
    if output.exists():
        raise CheckpointError(f"{output} exists already: remove it, or give another --output.")
    reader = CheckpointReader(checkpoint)
    reader.require_intact()
    tokenizer = tokenizer or reader.tokenizer
    _require_same_tokenizer(reader, tokenizer)
    names = _tensors(reader)
    needed = sum(tensor_bytes(name.shape, reader.dtype) for name in names) + _BYTES_BESIDE
    max_shard_bytes = max_shard_bytes or int(reader.setting("export.max_shard_bytes", MAX_SHARD_BYTES))
    temporary = output.with_name(f"{output.name}.tmp")
    try:
        _make_room(temporary, needed)
        export = _write(reader, names, temporary, output, max_shard_bytes=max_shard_bytes, tokenizer=tokenizer)
        proof = None if prove is None else prove(reader, temporary)
        export = Export(**{**vars(export), "proof": proof})
        _write_json(temporary / REPORT_NAME, _report(reader, export))
        if proof is not None and not proof.met:
            raise CheckpointError(
                f"the export of {reader.path} is not the model of the checkpoint: {proof.verdict} Look at "
                f"{_put_aside(temporary, output) / REPORT_NAME}."
            )
        _make_durable(temporary)
        temporary.rename(output)
        sync(output.parent)
    except OSError as error:
        raise CheckpointError(
            f"{output} was not written: {error.strerror} ({error.filename}). It needs {format_bytes(needed)}; make "
            "room or choose another --output."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return export


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


def _tensors(reader: CheckpointReader) -> list[TensorName]:
    """The tensors to write; they must be just those of the checkpoint."""
    names = format_of(reader.model.family).tensors(reader.model)
    expected = {name.canonical: name.shape for name in names}
    if expected != reader.shapes:
        wrong = sorted(
            key for key in expected.keys() | reader.shapes.keys() if expected.get(key) != reader.shapes.get(key)
        )
        raise CheckpointError(
            f"checkpoint {reader.path} does not hold the model its config describes: {wrong[0]} is "
            f"{reader.shapes.get(wrong[0])}, expected {expected.get(wrong[0])}."
        )
    return names


def _require_same_tokenizer(reader: CheckpointReader, tokenizer: Tokenizer) -> None:
    if tokenizer.fingerprint != reader.state.tokenizer_fingerprint:
        raise CheckpointError(
            f"{tokenizer} is not the tokenizer of checkpoint {reader.path} (fingerprint "
            f"{reader.state.tokenizer_fingerprint[:12]}): the same ids would mean other text. Give the run's own."
        )


def _make_room(temporary: Path, needed: int) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    free = shutil.disk_usage(temporary.parent).free
    if free < needed:
        raise CheckpointError(
            f"no room for an export in {temporary.parent}: it needs {format_bytes(needed)} and {format_bytes(free)} "
            "are free. Make room or choose another --output."
        )
    temporary.mkdir()


def _write(
    reader: CheckpointReader,
    names: Sequence[TensorName],
    folder: Path,
    output: Path,
    *,
    max_shard_bytes: int,
    tokenizer: Tokenizer,
) -> Export:
    """Everything but the report."""
    canonical = {name.hugging_face: name.canonical for name in names}
    shards = plan_shards(names, dtype=reader.dtype, max_shard_bytes=max_shard_bytes)
    files = shard_names(len(shards))

    def read(hugging_face: str) -> torch.Tensor:
        return reader.tensor(canonical[hugging_face]).to(reader.dtype)

    for file, shard in zip(files, shards, strict=True):
        entries = [TensorEntry(name.hugging_face, name.shape) for name in shard]
        write_safetensors(folder / file, entries, read, dtype=reader.dtype)
    total = sum(tensor_bytes(name.shape, reader.dtype) for name in names)
    if len(files) > 1:
        weight_map = {name.hugging_face: file for file, shard in zip(files, shards, strict=True) for name in shard}
        _write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / CONFIG_NAME, config_json(reader, tokenizer))
    _write_json(folder / GENERATION_CONFIG_NAME, generation_config_json(tokenizer))
    tokenizer.save(folder)
    return Export(
        folder=output,
        shards=len(files),
        tensors=len(names),
        parameters=sum(math.prod(name.shape) for name in names),
        tensor_bytes=total,
        proof=None,
    )


def _report(reader: CheckpointReader, export: Export) -> dict[str, Any]:
    """What a reader of the export wants to know of where it came from. No paths: it may be published."""
    state = reader.state
    return {
        "checkpoint": {
            "step": state.step,
            "consumed_samples": state.consumed_samples,
            "consumed_tokens": state.consumed_tokens,
            "milestone": state.milestone,
            "created": state.created,
            "layout": asdict(state.topology),
            "versions": dict(state.versions),
        },
        "model": {
            "dtype": str(reader.dtype).removeprefix("torch."),
            "tensors": export.tensors,
            "parameters": export.parameters,
            "tensor_bytes": export.tensor_bytes,
            "shards": export.shards,
        },
        "tokenizer_fingerprint": state.tokenizer_fingerprint,
        "parity": None
        if export.proof is None
        else {
            "met": export.proof.met,
            "verdict": export.proof.verdict,
            **export.proof.measurements,
        },
        "exported_by": software_versions(),
    }


def _put_aside(temporary: Path, output: Path) -> Path:
    """Keeps an export that is not proven, under a name that nothing loads."""
    failed = output.with_name(f"{output.name}.failed")
    shutil.rmtree(failed, ignore_errors=True)
    temporary.rename(failed)
    return failed


def _make_durable(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        sync(path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
