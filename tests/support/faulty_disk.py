"""A disk that fails or dies at a chosen operation, and one that forgets what was not synced when the power goes.

All changes that this process makes below a folder pass through :class:`FaultyDisk`: making, writing, syncing, renaming
and removing files and folders, in any thread. It counts them, and before one of them something happens to the process
or to the operation. :func:`lose_power` then leaves on the disk what a file system guarantees and no more.
"""

import builtins
import io
import os
import pickle
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

DEAD = 9
"""Status of a process that :func:`die` has ended."""

_PATCHED = ("fsync", "fdatasync", "rename", "replace", "unlink", "remove", "mkdir", "rmdir")


@dataclass(frozen=True)
class Operation:
    """One change on the disk: what was done to which path; ``target`` and ``backup`` as far as they apply.

    Attributes:
        target: new name of what is renamed.
        backup: a second name of the file that is replaced or removed.
    """

    kind: str
    path: str
    target: str | None = None
    backup: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {Path(self.path).name}"


@dataclass
class Journal:
    """What happened on a disk, in order."""

    folder: Path
    operations: list[Operation] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Journal":
        """Reads what :func:`die` wrote."""
        journal: Journal = pickle.loads(path.read_bytes())
        return journal


Fault = Callable[["FaultyDisk", Operation], None]
"""What happens at the chosen operation: raises, ends the process, or returns and lets it happen."""


class FaultyDisk:
    """For the length of a ``with`` block, watches changes below a folder and spoils one of them.

    Args:
        folder: the folder; other paths are left alone.
        at: which operation the fault comes before, from 0; None for none.
        fault: what then happens.
        backups: a folder on the same disk, outside; where given, removed files keep a second name there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        at: int | None = None,
        fault: Fault = lambda disk, operation: None,
        backups: Path | None = None,
    ) -> None:
        self.journal = Journal(folder)
        self._prefix = f"{folder}{os.sep}"
        self._at, self._fault, self._backups = at, fault, backups
        self._lock = threading.RLock()
        self._before: dict[str, Any] = {}

    @property
    def operations(self) -> list[Operation]:
        """What was done so far, the spoilt operation included."""
        return self.journal.operations

    def __enter__(self) -> "FaultyDisk":
        self._before = {name: getattr(os, name) for name in _PATCHED} | {"open": io.open}
        for name in _PATCHED:
            setattr(os, name, getattr(self, f"_{name}"))
        io.open = builtins.open = self._open  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in _PATCHED:
            setattr(os, name, self._before[name])
        io.open = builtins.open = self._before["open"]

    def note(self, kind: str, path: str, target: str | None = None) -> None:
        """An operation is about to happen."""
        if not f"{path}{os.sep}".startswith(self._prefix):
            return
        with self._lock:
            operation = Operation(kind, path, target, self._backed_up(path if target is None else target, kind))
            if len(self.operations) == self._at:
                self._fault(self, operation)
            self.operations.append(operation)

    def _backed_up(self, path: str, kind: str) -> str | None:
        if self._backups is None or kind not in ("rename", "remove") or not os.path.isfile(path):
            return None
        backup = str(self._backups / str(len(self.operations)))
        os.link(path, backup)
        return backup

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        path = os.path.abspath(os.fspath(file)) if isinstance(file, str | os.PathLike) else ""
        if not path.startswith(self._prefix) or not any(letter in mode for letter in "wax+"):
            return self._before["open"](file, mode, buffering, *args, **kwargs)
        self.note("create" if not os.path.exists(path) else "truncate", path)
        raw = _NotedFile(self, path, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        binary = io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, *args, **kwargs)

    def _fsync(self, descriptor: int) -> None:
        self.note("sync", os.readlink(f"/proc/self/fd/{descriptor}"))
        self._before["fsync"](descriptor)

    def _fdatasync(self, descriptor: int) -> None:
        self.note("sync", os.readlink(f"/proc/self/fd/{descriptor}"))
        self._before["fdatasync"](descriptor)

    def _rename(self, source: Any, target: Any) -> None:
        self.note("rename", os.path.abspath(source), os.path.abspath(target))
        self._before["rename"](source, target)

    def _replace(self, source: Any, target: Any) -> None:
        self.note("rename", os.path.abspath(source), os.path.abspath(target))
        self._before["replace"](source, target)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self.note("remove", _absolute(path, dir_fd))
        self._before["unlink"](path, dir_fd=dir_fd)

    _remove = _unlink

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if not os.path.isdir(path):
            self.note("mkdir", _absolute(path, dir_fd))
        self._before["mkdir"](path, mode, dir_fd=dir_fd)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self.note("rmdir", _absolute(path, dir_fd))
        self._before["rmdir"](path, dir_fd=dir_fd)


class _NotedFile(io.FileIO):
    """A file that notes each write before it happens."""

    def __init__(self, disk: FaultyDisk, path: str, mode: str) -> None:
        self._disk, self._path = disk, path
        super().__init__(path, mode)

    def write(self, content: Any) -> int:
        try:
            self._disk.note("write", self._path)
        except HalfDoneError:
            super().write(memoryview(content).cast("B")[: memoryview(content).nbytes // 2])
            os._exit(DEAD)
        return super().write(content)


class HalfDoneError(Exception):
    """A write that is to be cut short."""


def refuse(number: int) -> Fault:
    """The operation fails with an error number."""

    def fault(disk: FaultyDisk, operation: Operation) -> None:
        disk.operations.append(operation)
        raise OSError(number, os.strerror(number), operation.path)

    return fault


def die(journal: Path | None = None) -> Fault:
    """The process ends for good, for forked processes only; a write is cut short in the middle.

    Args:
        journal: where to leave what happened, for :func:`lose_power`.
    """

    def fault(disk: FaultyDisk, operation: Operation) -> None:
        if journal is not None:
            save_journal(disk.journal, journal)
        if operation.kind == "write":
            raise HalfDoneError
        os._exit(DEAD)

    return fault


def save_journal(journal: Journal, path: Path) -> None:
    """Writes a journal for another process; past the faulty disk, which may be watching."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, pickle.dumps(journal))
    os.close(descriptor)


def lose_power(journal: Journal, rng: random.Random) -> int:
    """Undoes what the disk need not have kept; returns how many operations were lost.

    A file keeps what was written up to its last sync, and any part of what came later. Of the names in a folder, those
    up to its last sync are kept; of later changes any number is lost, the last ones first. A sync that was about to
    happen did not.
    """
    operations = journal.operations
    lost = 0
    for path in _unsynced_files(operations):
        now = _current_name(path, operations)
        if os.path.isfile(now):
            size = os.path.getsize(now)
            os.truncate(now, rng.randint(0, size))
            lost += 1
    for index in sorted(_lost_names(operations, rng), reverse=True):
        _undo(operations[index])
        lost += 1
    return lost


def _unsynced_files(operations: list[Operation]) -> list[str]:
    written: dict[str, bool] = {}
    for operation in operations:
        if operation.kind in ("create", "truncate", "write"):
            written[operation.path] = False
        elif operation.kind == "sync" and operation.path in written:
            written[operation.path] = True
        elif operation.kind == "rename" and operation.path in written and operation.target is not None:
            written[operation.target] = written.pop(operation.path)
    return [path for path, synced in written.items() if not synced]


def _current_name(path: str, operations: list[Operation]) -> str:
    """Where a file is after the renames of itself and of the folders above it."""
    for operation in operations:
        if operation.kind == "rename" and operation.target is not None:
            if path == operation.path:
                path = operation.target
            elif path.startswith(f"{operation.path}{os.sep}"):
                path = operation.target + path[len(operation.path) :]
    return path


def _lost_names(operations: list[Operation], rng: random.Random) -> list[int]:
    """Of each folder a random number of the changes after its last sync, from the end."""
    pending: dict[str, list[int]] = {}
    for index, operation in enumerate(operations):
        if operation.kind in ("create", "rename", "remove", "mkdir", "rmdir"):
            pending.setdefault(os.path.dirname(operation.path), []).append(index)
        elif operation.kind == "sync":
            pending.pop(operation.path, None)
    return [index for changes in pending.values() for index in changes[rng.randint(0, len(changes)) :]]


def _undo(operation: Operation) -> None:
    """Takes back a change of a name; what is no longer there was inside something that was taken back before."""
    path = Path(operation.path)
    if operation.kind == "create":
        path.unlink(missing_ok=True)
    elif operation.kind == "mkdir" and path.is_dir():
        shutil.rmtree(path)
    elif operation.kind == "rename" and operation.target is not None and os.path.exists(operation.target):
        os.rename(operation.target, path)
        if operation.backup is not None:
            os.link(operation.backup, operation.target)
    elif operation.kind == "remove" and operation.backup is not None and path.parent.is_dir():
        os.link(operation.backup, path)
    elif operation.kind == "rmdir" and path.parent.is_dir():
        path.mkdir(exist_ok=True)


def _absolute(path: Any, dir_fd: int | None) -> str:
    if dir_fd is None:
        return os.path.abspath(path)
    return os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fspath(path))
