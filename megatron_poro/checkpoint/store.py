"""A folder of checkpoints: how one comes into being whole or not at all, and which are kept.

A checkpoint is written into ``step_00000144.<random>.tmp``, made durable, sealed with a manifest and renamed; then
``latest`` is replaced by a rename. Whatever moment a machine dies at, the folder holds the old checkpoint or the new
one, never a mix. ``latest`` is for people and scripts: the loader looks for the newest folder whose manifest holds.

Everything here is done by one process and needs no torch; :mod:`megatron_poro.checkpoint.saving` brings all processes
together around it.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.manifest import FileEntry
from megatron_poro.checkpoint.state import META_NAME, RunState
from megatron_poro.errors import CheckpointError
from megatron_poro.logs import get_logger
from megatron_poro.units import format_bytes

LATEST_NAME = "latest"
_STEP = re.compile(r"step_(\d{8,})")
# folders a save or a removal that was cut short may leave; none of them is ever read
_LEFTOVERS = ("*.tmp", "*.removed")

logger = get_logger(__name__)


@dataclass(frozen=True)
class Damaged:
    """A step folder that is not a valid checkpoint, and what is wrong with it."""

    path: Path
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path.name}: {'; '.join(self.problems)}"


def step_name(step: int) -> str:
    """Name of a step's folder; zeros in front, so that names sort as numbers do."""
    return f"step_{step:08d}"


def step_of(path: Path) -> int | None:
    """The step that a folder's name says, or None if it is not the name of a step folder."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match and path.name == step_name(int(match[1])) else None


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where the step folders are; made by the first save.
        keep_last: how many of the newest checkpoints survive a save (at least the one just written does). Milestones
            are kept for ever.
        before_commit: called before anything in the folder is removed or renamed; raises if the folder belongs to
            another job by now.
    """

    def __init__(
        self, folder: Path | str, *, keep_last: int = 2, before_commit: Callable[[], None] = lambda: None
    ) -> None:
        self.folder = Path(folder)
        self.keep_last = max(1, keep_last)
        self._before_commit = before_commit

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.folder / step_name(step)

    def steps(self) -> list[int]:
        """Steps that have a folder, valid or not, newest first."""
        if not self.folder.is_dir():
            return []
        found = (step_of(path) for path in self.folder.iterdir() if path.is_dir())
        return sorted((step for step in found if step is not None), reverse=True)

    def newest_valid(
        self, check: Callable[[Path], list[str]] = manifest.problems, *, steps: Iterable[int] | None = None
    ) -> tuple[Path | None, tuple[Damaged, ...]]:
        """The newest checkpoint without a problem, and the newer ones that were passed over.

        Args:
            check: says what is wrong with a folder; by default every byte is compared with the manifest.
            steps: what to look at, newest first; by default :meth:`steps`.
        """
        damaged: list[Damaged] = []
        for step in self.steps() if steps is None else steps:
            found = check(self.path(step))
            if not found:
                return self.path(step), tuple(damaged)
            damaged.append(Damaged(self.path(step), tuple(found)))
        return None, tuple(damaged)

    def stage(self, step: int, needed_bytes: int) -> Path:
        """An empty folder to write a checkpoint into; clears what an interrupted save left behind.

        Its name has a random part: a job that was thought dead and still writes somewhere never writes into this one.

        Args:
            step: optimizer step of the checkpoint.
            needed_bytes: upper bound of its size.

        Raises:
            CheckpointError: if the step has a valid checkpoint already, the disk has no room, or the folder cannot be
                made.
        """
        self._before_commit()
        final = self.path(step)
        if final.exists() and not manifest.problems(final):
            raise CheckpointError(
                f"{final} is a valid checkpoint already and is not overwritten: resume from it, or give the run "
                "another run.name."
            )
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
                sync(self.folder.parent)
            for pattern in _LEFTOVERS:
                for leftover in self.folder.glob(pattern):
                    shutil.rmtree(leftover)
            free = shutil.disk_usage(self.folder).free
            if free < needed_bytes:
                raise CheckpointError(
                    f"no room for checkpoint {final}: it needs {format_bytes(needed_bytes)} and {format_bytes(free)} "
                    "are free. Make room, or lower checkpoint.keep_last; the checkpoints before it are intact."
                )
            staging = self.folder / f"{final.name}.{secrets.token_hex(4)}.tmp"
            staging.mkdir()
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {final} cannot be written: {error.strerror} ({error.filename}); it needs "
                f"{format_bytes(needed_bytes)}. Make the folder writable or choose another run.root."
            ) from error
        return staging

    def commit(self, staging: Path, entries: Mapping[str, FileEntry]) -> Path:
        """Turns a staged folder into a checkpoint and points ``latest`` to it.

        Args:
            staging: what :meth:`stage` returned.
            entries: size and checksum of every file in the folder, by relative path; the files are durable already.

        Raises:
            OSError: if the disk refuses; there is no checkpoint of this step then.
        """
        final = staging.with_name(staging.name.partition(".")[0])
        write_durably(staging / manifest.MANIFEST_NAME, manifest.encode(entries))
        for folder in {(staging / name).parent for name in entries}:
            sync(folder)
        self._before_commit()
        if final.exists():  # stage() has seen that it is damaged; out of the way, but not lost
            aside = final.with_name(f"{final.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        staging.rename(final)
        try:
            # makes the rename above durable as well: both are names in this folder
            write_durably(self.folder / LATEST_NAME, f"{final.name}\n".encode())
        except OSError as error:  # the checkpoint exists; who resumes looks for it and not for this file
            logger.warning("%s cannot be replaced (%s); %s is complete.", LATEST_NAME, error.strerror, final)
        return final

    def discard(self, staging: Path) -> None:
        """Removes a staged folder, as far as the disk lets us."""
        shutil.rmtree(staging, ignore_errors=True)

    def superfluous(self) -> list[int]:
        """Steps that are neither among the newest ``keep_last`` nor milestones, newest first.

        Folders that are not complete are not counted and not among them: they are for a person to look at.
        """
        return [step for step in self._complete()[self.keep_last :] if not self._is_milestone(step)]

    def retain(self, *, proven: int | None = None) -> list[Path]:
        """Removes the :meth:`superfluous` checkpoints; returns what it removed.

        Files of the right size may still be damaged, so at least one of those that stay is proven whole first: the one
        that was just written, whose checksums were taken from memory and whose files have reached the disk, or else
        the newest whose every byte compares with its manifest. Where none is, nothing is removed.

        Args:
            proven: a step that was just committed by this process.
        """
        doomed = self.superfluous()
        if not doomed:
            return []
        staying = [step for step in self._complete() if step not in doomed]
        if proven not in staying and all(manifest.problems(self.path(step)) for step in staying):
            logger.warning("none of the checkpoints in %s that would stay is valid; none is removed.", self.folder)
            return []
        try:
            sync(self.folder)  # the names of those that stay reach the disk before any other goes
        except OSError as error:
            logger.warning("old checkpoints in %s are not removed: %s", self.folder, error.strerror)
            return []
        return [self.path(step) for step in doomed if self._remove(step)]

    def _complete(self) -> list[int]:
        """Steps whose files are all there and have the right sizes, newest first."""
        return [step for step in self.steps() if not manifest.problems(self.path(step), checksums=False)]

    def _remove(self, step: int) -> bool:
        doomed = self.path(step).with_name(f"{step_name(step)}.removed")
        try:
            self.path(step).rename(doomed)  # from here on it does not exist, however far the removal gets
            shutil.rmtree(doomed)
        except OSError as error:
            logger.warning("cannot remove old checkpoint %s: %s", self.path(step), error.strerror)
            return False
        return True

    def _is_milestone(self, step: int) -> bool:
        try:
            return RunState.read(self.path(step) / META_NAME).milestone is not None
        except CheckpointError:
            return True  # whoever cannot be read is not thrown away


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file by a rename, so that it is always the old or the new one, also after a power failure."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Makes the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
