"""Writing a checkpoint: every process writes what it owns, one seals it, all agree that it is done.

A save has four parts. *Begin*: all look whether the tensors are complete, one makes the staging folder, all plan who
writes what. *Write*: each process writes its own file and makes it durable; this takes nearly all of the time and needs
no other process. *Collect*: all tell what they wrote. *Commit*: one process writes the index and the manifest and
renames. :func:`save` does them one after the other; :mod:`megatron_poro.checkpoint.background` trains in between. A
failure on any process in any part is the same error on all, and leaves the checkpoints that were there as they were.
"""

import errno
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.fragment import ChunkedTensor, chunked_tensors, tensor_key
from megatron_poro.checkpoint.index import INDEX_NAME
from megatron_poro.checkpoint.manifest import FileEntry
from megatron_poro.checkpoint.phases import phase
from megatron_poro.checkpoint.state import META_NAME, TOKENIZER_FOLDER, RunState
from megatron_poro.checkpoint.store import CheckpointStore, sync
from megatron_poro.checkpoint.writing import Written, plan_writing
from megatron_poro.engine.engine import Engine, Fragment
from megatron_poro.errors import CheckpointError, UnsavableError
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
        UnsavableError: on every process alike, if a value is not finite; nothing has changed on disk.
        CheckpointError: on every process alike, if the disk is full or not writable, or the step has a checkpoint
            already; the checkpoints that were there are as they were.
    """
    owned = owned_fragments(engine, step=state.step)
    return write_checkpoint(store, chunked_tensors(owned), state, world=engine.groups.world, tokenizer=tokenizer)


def owned_fragments(engine: Engine, *, step: int) -> list[Fragment]:
    """What this process writes of an engine. All processes call it.

    Raises:
        UnsavableError: on every process alike, if a value of any of them is not finite.
    """
    owned = [fragment for fragment in engine.fragments() if fragment.is_owner]
    with phase(engine.groups.world):
        _require_finite(owned, step=step)
    return owned


def write_checkpoint(
    store: CheckpointStore,
    tensors: Mapping[str, ChunkedTensor],
    state: RunState,
    *,
    world: World,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Writes tensors given by key; :func:`save` without an engine.

    Args:
        tensors: what this process writes. Together the processes must write each element of each tensor once. A chunk
            is asked for when it is written and dropped after, so chunks made on demand never fill the memory.
        store, state, tokenizer: as in :func:`save`.
        world: the processes that take part.

    Raises:
        CheckpointError: as :func:`save`.
    """
    going = CheckpointInMaking(store, tensors, state, world=world, tokenizer=tokenizer)
    with going.part():
        going.write()
    going.collect()
    with going.part():
        path = going.commit()
    return path


class CheckpointInMaking:
    """A save that has begun: staged and planned. All processes make one together.

    Its methods are called in the order in which they stand here. :meth:`write` and :meth:`commit` need no other process
    and may run in a thread; both belong inside :meth:`part`, or hand over to it what they raised.

    Args:
        store, tensors, state, world, tokenizer: as in :func:`write_checkpoint`.

    Raises:
        CheckpointError: on every process alike, if the disk has no room or is not writable, or the step has a
            checkpoint already.
    """

    def __init__(
        self,
        store: CheckpointStore,
        tensors: Mapping[str, ChunkedTensor],
        state: RunState,
        *,
        world: World,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.step = state.step
        self._store, self._state, self._world, self._tokenizer = store, state, world, tokenizer
        self._needed = _require_complete(tensors, world)
        self._staging: Path | None = None
        self._written: Written | None = None
        self._of_all: list[Written] = []
        with self.part():
            if world.is_first:
                self._staging = store.stage(state.step, self._needed)
        self._staging = world.gather(self._staging)[0]
        self._plan = plan_writing(tensors, world=world)

    @contextmanager
    def part(self) -> Iterator[None]:
        """A block that all processes run; what fails on one is raised on all, and what was staged is removed."""
        try:
            with phase(self._world, self._explain):
                yield
        except CheckpointError:
            if self._world.is_first and self._staging is not None:
                self._store.discard(self._staging)
            raise

    def write(self) -> None:
        """Writes this process's tensors, durably; the first one also the state and the tokenizer."""
        assert self._staging is not None, "nothing is staged"
        written = self._plan.write(self._staging)
        if self._world.is_first:
            (self._staging / META_NAME).write_bytes(self._state.encode())
            if self._tokenizer is not None:
                self._tokenizer.save(self._staging / TOKENIZER_FOLDER)
            for name in manifest.relative_files(self._staging):
                if name == META_NAME or name.startswith(f"{TOKENIZER_FOLDER}/"):
                    written.entries[name] = _made_durable(self._staging, name)
        self._written = written

    def collect(self) -> None:
        """Tells all processes what each of them wrote. All processes call it, and all have written."""
        assert self._written is not None, "nothing is written"
        self._of_all = self._world.gather(self._written)

    def commit(self) -> Path:
        """Makes the checkpoint exist and removes old ones; does something on the first process only."""
        if self._world.is_first:
            assert self._staging is not None, "nothing is staged"
            self._plan.write_index(self._staging, self._of_all)
            entries: dict[str, FileEntry] = {INDEX_NAME: _made_durable(self._staging, INDEX_NAME)}
            for written in self._of_all:
                entries |= written.entries
            self._store.commit(self._staging, entries)
            for path in self._store.retain(proven=self.step):
                logger.info("removed old checkpoint %s", path)
        return self._store.path(self.step)

    def _explain(self, error: BaseException) -> str:
        """One sentence of what a disk said."""
        final = self._store.path(self.step)
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        try:
            free = format_bytes(shutil.disk_usage(final.parent).free)
        except OSError:
            free = "an unknown number of bytes"
        advice = "Make room" if isinstance(error, OSError) and error.errno in _FULL else "Look at the disk"
        return (
            f"checkpoint {final} was not written: {reason}. It needs {format_bytes(self._needed)}, {free} are free. "
            f"{advice}; the checkpoints before it are intact."
        )


def _made_durable(folder: Path, name: str) -> FileEntry:
    sync(folder / name)
    return manifest.describe(folder / name)


def _require_finite(fragments: Iterable[Fragment], *, step: int) -> None:
    """A checkpoint with a NaN in it would end every run that resumes from it."""
    for fragment in fragments:
        if fragment.flat.numel() == 0:
            continue
        low, high = torch.aminmax(fragment.flat)  # a NaN anywhere makes both NaN; needs no second buffer
        if not (math.isfinite(low.item()) and math.isfinite(high.item())):
            raise UnsavableError(
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


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
