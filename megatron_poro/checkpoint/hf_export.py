"""Checkpoint -> Hugging Face folder, in the memory of some rows of a tensor: no process group, no GPU.

The masters are rounded to the run's format as the engine rounds them, so the exported model is the model that was
trained, bit for bit. The folder gets its name when everything in it is written, durable and proven equal to the
checkpoint; an export that is not proven is left beside it as ``<name>.failed``.

Four things happen at once, so that the disk sets the pace: the files that are read are compared with the manifest,
the next rows are read and rounded, those before them are written, and what is written is hashed.
"""

import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.export_report import REPORT_NAME, build_report
from megatron_poro.checkpoint.hf_files import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    INDEX_NAME,
    config_json,
    generation_config_json,
    plan_shards,
    shard_names,
)
from megatron_poro.checkpoint.hf_format import format_of
from megatron_poro.checkpoint.intact import intact_at_the_end
from megatron_poro.checkpoint.manifest import FileEntry
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.rows import TensorRows
from megatron_poro.checkpoint.safetensors_file import TensorEntry, tensor_bytes, write_safetensors
from megatron_poro.checkpoint.state import META_NAME
from megatron_poro.checkpoint.store import sync
from megatron_poro.errors import CheckpointError
from megatron_poro.locks import hold
from megatron_poro.models.bloom_names import TensorName
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.units import format_bytes

MAX_SHARD_BYTES = 5_000_000_000
"""Of a checkpoint whose config does not say, such as an import."""

BLOCK_ELEMENTS = 4 << 20
"""Elements that are read, rounded and written at a time: 16 MiB of masters, 8 MiB of bf16."""

BLOCKS_AHEAD = 4
READERS = 2

# headers, JSON files and a tokenizer
_BYTES_BESIDE = 32 << 20


class UnprovenError(CheckpointError):
    """An export was written, and is not the model of its checkpoint: to try again would find the same."""


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
        files: size and checksum of each file but the report.
        proof: what was compared, or None.
    """

    folder: Path
    shards: int
    tensors: int
    parameters: int
    tensor_bytes: int
    files: Mapping[str, FileEntry]
    proof: Proof | None = None


def export_checkpoint(
    checkpoint: Path | str,
    output: Path | str,
    *,
    prove: Callable[[CheckpointReader, Path], Proof] | None,
    max_shard_bytes: int | None = None,
    tokenizer: Tokenizer | None = None,
    verify: bool = True,
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
        verify: compare every file that is read, which those with nothing but moments are not, with the checkpoint's
            manifest. False is for one that was verified just now: damage would be exported, and a proof, which reads
            the same bytes, would not see it.

    Raises:
        UnprovenError: if the proof is not met.
        CheckpointError: if the checkpoint is damaged, or the output exists, is being made by another process or cannot
            be written.
        DataError: if there is no tokenizer.
    """
    output = Path(output)
    reader = CheckpointReader(checkpoint)
    try:
        with _claimed(output) as temporary:
            with intact_at_the_end(reader.path, reader.files_of_masters) if verify else nullcontext():
                tokenizer = tokenizer or reader.tokenizer
                _require_same_tokenizer(reader, tokenizer)
                limit = max_shard_bytes or int(reader.setting("export.max_shard_bytes", MAX_SHARD_BYTES))
                export = _write(reader, temporary, output, max_shard_bytes=limit, tokenizer=tokenizer)
            export = replace(export, proof=None if prove is None else prove(reader, temporary))
            _write_json(temporary / REPORT_NAME, _report(reader, export))
            if export.proof is not None and not export.proof.met:
                raise UnprovenError(
                    f"the export of {reader.path} is not the model of the checkpoint: {export.proof.verdict} Look at "
                    f"{_put_aside(temporary, output) / REPORT_NAME}."
                )
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            _require_still_a_milestone(reader)
            temporary.rename(output)
            sync(output.parent)
    except OSError as error:
        where = "" if error.filename is None else f" ({error.filename})"
        raise CheckpointError(
            f"{output} was not written: {error.strerror or error}{where}. Make room, or choose another --output."
        ) from error
    return export


@contextmanager
def _claimed(output: Path) -> Iterator[Path]:
    """An empty folder to write the export into, which no other process uses; what is left of it is removed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    in_use = CheckpointError(f"{output} is being made by another process: wait until it has ended.")
    with hold(output.with_name(f".{output.name}.lock"), in_use):
        if output.exists():
            raise CheckpointError(f"{output} exists already: remove it, or give another --output.")
        temporary = output.with_name(f"{output.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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


def _require_still_a_milestone(reader: CheckpointReader) -> None:
    """A milestone is kept for ever; one that is gone belongs to a history that the run has left."""
    if reader.state.milestone is not None and not (reader.path / META_NAME).exists():
        raise CheckpointError(
            f"milestone {reader.path} was taken away while it was exported, by a rewind or by hand: its export is not "
            "kept either."
        )


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"no room for an export in {folder.parent}: it needs {format_bytes(needed)} and {format_bytes(free)} "
            "are free. Make room or choose another --output."
        )


def _write(
    reader: CheckpointReader, folder: Path, output: Path, *, max_shard_bytes: int, tokenizer: Tokenizer
) -> Export:
    """Everything but the report."""
    names = _tensors(reader)
    total = sum(tensor_bytes(name.shape, reader.dtype) for name in names)
    _require_room(folder, total + _BYTES_BESIDE)
    shards = plan_shards(names, dtype=reader.dtype, max_shard_bytes=max_shard_bytes)
    by_file = dict(zip(shard_names(len(shards)), shards, strict=True))
    entries: dict[str, FileEntry] = {}
    with _rounded(reader, names) as blocks:
        for file, shard in by_file.items():
            described = [TensorEntry(name.hugging_face, name.shape) for name in shard]
            entries[file] = write_safetensors(folder / file, described, blocks, dtype=reader.dtype)
    if len(by_file) > 1:
        weight_map = {name.hugging_face: file for file, shard in by_file.items() for name in shard}
        _write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / CONFIG_NAME, config_json(reader, tokenizer))
    _write_json(folder / GENERATION_CONFIG_NAME, generation_config_json(tokenizer))
    tokenizer.save(folder)
    small = {path.name: manifest.describe(path) for path in folder.iterdir() if path.name not in entries}
    return Export(
        folder=output,
        shards=len(by_file),
        tensors=len(names),
        parameters=sum(math.prod(name.shape) for name in names),
        tensor_bytes=total,
        files={**entries, **small},
    )


@contextmanager
def _rounded(reader: CheckpointReader, names: Sequence[TensorName]) -> Iterator[Iterator[torch.Tensor]]:
    """The rounded masters in order, some rows at a time; while these are in use the next ones are read."""

    def read(tensor: TensorRows, begin: int, end: int) -> torch.Tensor:
        return tensor.read(begin, end).to(reader.dtype)

    def blocks(pool: ThreadPoolExecutor) -> Iterator[torch.Tensor]:
        coming: deque[Future[torch.Tensor]] = deque()
        for name in names:
            tensor = TensorRows(reader, name.canonical)
            rows = max(1, BLOCK_ELEMENTS // math.prod(name.shape[1:]))
            for begin in range(0, name.shape[0], rows):
                coming.append(pool.submit(read, tensor, begin, min(begin + rows, name.shape[0])))
                if len(coming) > BLOCKS_AHEAD:
                    yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    with ThreadPoolExecutor(READERS, "read") as pool:
        try:
            yield blocks(pool)
        finally:
            pool.shutdown(cancel_futures=True)


def _report(reader: CheckpointReader, export: Export) -> dict[str, Any]:
    proof = export.proof
    return build_report(
        reader.state,
        checkpoint=reader.path.name,
        model={
            "dtype": str(reader.dtype).removeprefix("torch."),
            "tensors": export.tensors,
            "parameters": export.parameters,
            "tensor_bytes": export.tensor_bytes,
            "shards": export.shards,
        },
        parity=None if proof is None else {"met": proof.met, "verdict": proof.verdict, **proof.measurements},
        files=export.files,
    )


def _put_aside(temporary: Path, output: Path) -> Path:
    """Keeps an export that is not proven, under a name that nothing loads."""
    failed = output.with_name(f"{output.name}.failed")
    shutil.rmtree(failed, ignore_errors=True)
    temporary.rename(failed)
    return failed


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
