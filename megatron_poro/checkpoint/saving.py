"""Writing a checkpoint: every process writes what it owns, one seals it, all agree that it is done.

The order is: check values and room, stage, write tensors, write ``meta.json`` and the tokenizer, hash and make
durable, commit, forget old ones. A failure on any process in any phase is the same error on all, and leaves the folder
as it was.
"""

import errno
import math
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import StorageMeta

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.fragment import ChunkedTensor, chunked_tensors, tensor_key
from megatron_poro.checkpoint.manifest import FileEntry
from megatron_poro.checkpoint.phases import phase
from megatron_poro.checkpoint.state import META_NAME, TOKENIZER_FOLDER, RunState
from megatron_poro.checkpoint.store import CheckpointStore, sync
from megatron_poro.engine.engine import Engine, Fragment
from megatron_poro.errors import CheckpointError
from megatron_poro.logs import get_logger
from megatron_poro.parallel.agreement import World
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.units import format_bytes

# upper bounds of what a checkpoint holds beside its elements: torch's wrapping of a chunk and its line in the index;
# meta.json, the manifest and a tokenizer of a quarter million tokens
_BYTES_PER_CHUNK = 4096
_BYTES_BESIDE = 32 << 20

logger = get_logger(__name__)


def save(store: CheckpointStore, engine: Engine, state: RunState, *, tokenizer: Tokenizer | None = None) -> Path:
    """Writes the engine's masters and moments as the checkpoint of ``state.step``. All processes call it.

    Args:
        store: the run's checkpoints.
        engine: what to save; it is only read.
        state: where the run stands.
        tokenizer: kept inside the checkpoint, so that an export needs nothing else.

    Returns:
        The folder of the checkpoint; it is complete on disk.

    Raises:
        CheckpointError: on every process alike, if a value is not finite, the disk is full or not writable, or the step
            has a checkpoint already; nothing has changed on disk.
    """
    world = engine.groups.world
    owned = [fragment for fragment in engine.fragments() if fragment.is_owner]
    with phase(world):
        _require_finite(owned, step=state.step)
    return write_checkpoint(store, chunked_tensors(owned), state, world=world, tokenizer=tokenizer)


def write_checkpoint(
    store: CheckpointStore,
    tensors: Mapping[str, ChunkedTensor],
    state: RunState,
    *,
    world: World,
    tokenizer: Tokenizer | None = None,
    file_per_chunk: bool = False,
) -> Path:
    """Writes tensors given by key; :func:`save` without an engine.

    Args:
        tensors: what this process writes. Together the processes must write each element of each tensor once.
        store, state, tokenizer: as in :func:`save`.
        world: the processes that take part.
        file_per_chunk: one file for each chunk instead of one for each process. Torch holds every chunk of a file until
            the file is closed, so this is what keeps chunks that are made on demand from filling the memory.

    Raises:
        CheckpointError: as :func:`save`.
    """
    needed = _require_complete(tensors, world)
    try:
        _stage_and_write(store, tensors, state, needed, world=world, tokenizer=tokenizer, file_per_chunk=file_per_chunk)
    except CheckpointError:
        if world.is_first:
            store.discard(state.step)
        raise
    if world.is_first:
        for path in store.retain():
            logger.info("removed old checkpoint %s", path)
    return store.path(state.step)


def _stage_and_write(
    store: CheckpointStore,
    tensors: Mapping[str, ChunkedTensor],
    state: RunState,
    needed: int,
    *,
    world: World,
    tokenizer: Tokenizer | None,
    file_per_chunk: bool,
) -> None:
    """The phases of a save, each ended by all processes together."""
    final = store.path(state.step)
    staging = final.with_name(f"{final.name}.tmp")

    def explain(error: BaseException) -> str:
        return _explain(error, final, needed)

    with phase(world, explain):
        if world.is_first:
            staging = store.stage(state.step, needed)
    with phase(world, explain):
        written = _write_tensors(staging, tensors, world, file_per_chunk=file_per_chunk)
    entries: dict[str, FileEntry] = {}
    with phase(world, explain):
        if world.is_first:
            (staging / META_NAME).write_bytes(state.encode())
            if tokenizer is not None:
                tokenizer.save(staging / TOKENIZER_FOLDER)
        for name in _own_files(staging, world):
            sync(staging / name)
            entries[name] = manifest.describe(staging / name)
    everything = {name: entry for part in world.gather(entries) for name, entry in part.items()}
    assert written <= everything.keys(), f"files without a checksum: {sorted(written - everything.keys())}"
    with phase(world, explain):
        if world.is_first:
            store.commit(state.step, everything)


def _write_tensors(
    staging: Path, tensors: Mapping[str, ChunkedTensor], world: World, *, file_per_chunk: bool
) -> set[str]:
    """Lets torch write this process's chunks; a collective call. Returns the files that hold the chunks of all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a world of one is no mishap
        index = state_dict_saver.save(
            dict(tensors),
            # every file is made durable once all of them are written
            storage_writer=_PlainWriter(staging, single_file_per_rank=not file_per_chunk, sync_files=False),
            planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            no_dist=world.size == 1,
        )
    return {stored.relative_path for stored in index.storage_data.values()}


class _PlainWriter(FileSystemWriter):
    """Torch's writer without the path and the random number it notes: equal states make equal files."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


def _own_files(staging: Path, world: World) -> list[str]:
    """The files this process hashes: those it wrote, which its page cache still holds; the first process the rest.

    Torch calls the files of rank 3 ``__3_0.distcp``, ``__3_1.distcp`` and so on.
    """
    names = manifest.relative_files(staging)
    if not world.is_first:
        return [name for name in names if name.startswith(f"__{world.rank}_")]
    others = tuple(f"__{rank}_" for rank in range(1, world.size))
    return [name for name in names if not name.startswith(others)]


def _require_finite(fragments: Iterable[Fragment], *, step: int) -> None:
    """A checkpoint with a NaN in it would end every run that resumes from it."""
    for fragment in fragments:
        if fragment.flat.numel() == 0:
            continue
        low, high = torch.aminmax(fragment.flat)  # a NaN anywhere makes both NaN; needs no second buffer
        if not (math.isfinite(low.item()) and math.isfinite(high.item())):
            raise CheckpointError(
                f"{tensor_key(fragment.kind, fragment.name)} is not finite at step {step} (between {low.item()} and "
                f"{high.item()}); it is not saved. Resume from the checkpoint before and lower the learning rate."
            )


def _require_complete(tensors: Mapping[str, ChunkedTensor], world: World) -> int:
    """Checks that the processes together hold each element of each tensor once; returns the bytes they will need.

    A collective call, and the same verdict on all. Torch finds chunks that overlap, but does not look for gaps when one
    process saves.
    """
    held = {key: (tuple(tensor.shape), tensor.num_elements_held, len(tensor.pieces)) for key, tensor in tensors.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    elements: dict[str, int] = {}
    needed = _BYTES_BESIDE
    for part in world.gather(held):
        for key, (shape, count, chunks) in part.items():
            assert shapes.setdefault(key, shape) == shape, f"{key} is {shape} here and {shapes[key]} elsewhere"
            elements[key] = elements.get(key, 0) + count
            needed += 4 * count + _BYTES_PER_CHUNK * chunks
    for key, count in elements.items():
        assert count == math.prod(shapes[key]), f"{count} elements of {key}, which is {shapes[key]}, have an owner"
    return needed


def _explain(error: BaseException, final: Path, needed: int) -> str:
    """One sentence of what a disk said."""
    reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    try:
        free = format_bytes(shutil.disk_usage(final.parent).free)
    except OSError:
        free = "an unknown number of bytes"
    advice = "Make room" if isinstance(error, OSError) and error.errno in _FULL else "Look at the disk"
    return (
        f"checkpoint {final} was not written: {reason}. It needs {format_bytes(needed)}, {free} are free. {advice} and "
        "resume; the checkpoints before it are intact."
    )


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
