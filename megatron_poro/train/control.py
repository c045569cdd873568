"""Requests from outside to a run that is under way, and what its processes must tell each other at a step boundary.

A signal (SIGTERM, SIGUSR1) to any one process asks the run to stop; so does a file in ``<run>/control/``, which the
first process looks for. Each process notes what it knows, and at the next boundary, between two steps or two portions
of a validation, one exchange merges the notes, so that all processes act on the same ones. A signal ends the run with
``ExitCode.STOPPED``, which tells a job script to start it again; the file ``stop`` with ``ExitCode.FINISHED``, since
the person who wrote it wants no new job.
"""

import signal
from collections.abc import Callable
from enum import IntFlag
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from megatron_poro.errors import ConfigError
from megatron_poro.logs import get_logger

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

logger = get_logger(__name__)


class Notice(IntFlag):
    """What a process has to tell the others at a step boundary; the bits of all processes are merged."""

    STOP_SIGNAL = 1
    """A signal asks to save, to end, and to be started again."""

    STOP_FILE = 2
    """The control file ``stop`` asks to save and to end."""

    SAVE_FILE = 4
    """The control file ``save`` asks to save and to go on."""

    LEASE_LOST = 8
    """Another job has taken the run over: end without saving."""

    WRITING = 16
    """A writer of a checkpoint is still busy."""


STOPPING = Notice.STOP_SIGNAL | Notice.STOP_FILE
"""Either of the requests to stop."""


class StopRequest:
    """Notes signals that ask the run to stop, for the length of a ``with`` block in the main thread.

    Further signals are noted too and change nothing: a second SIGTERM does not end a save that the first one caused.

    Args:
        until_exit: ignore such signals after the block, because the process is about to end: one that comes while the
            interpreter shuts down would else replace the exit code that a job script waits for.
    """

    def __init__(self, *, until_exit: bool = False) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._until_exit = until_exit

    @property
    def received(self) -> signal.Signals | None:
        """The first signal that has come."""
        return self._received

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._until_exit else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # nothing but a note: a handler that logs can meet a lock the interrupted code holds
        if self._received is None:
            self._received = signal.Signals(number)


class StoppedEarlyError(Exception):
    """A request to stop came while the run was being built; there is nothing to save. Not an error of the input."""


class ControlFiles:
    """The folder ``<run>/control``, in which a person asks something of a run by making an empty file.

    Args:
        folder: it; made by :meth:`prepare`.
    """

    STOP = "stop"
    SAVE = "save"
    DUMP_STACKS = "dump-stacks"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Makes the folder, so that ``touch`` works.

        Raises:
            ConfigError: if the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self.folder} cannot be made ({error.strerror}); make the run folder writable."
            ) from error

    def is_asked(self, name: str) -> bool:
        """Whether a file is there; a file system that does not answer says no."""
        try:
            return (self.folder / name).exists()
        except OSError:
            return False

    def obeyed(self, name: str) -> None:
        """Removes a file."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed (%s); it will be obeyed again.", self.folder / name, error.strerror)


class Control:
    """What a run is asked from outside, the same on all processes at each boundary.

    Args:
        stop: signals to this process.
        files: control files; None on all processes but the first.
        merge: makes of one process's bits those of all (``World.union``).
    """

    def __init__(self, stop: StopRequest, files: ControlFiles | None, merge: Callable[[int], int]) -> None:
        self._stop = stop
        self._files = files
        self._merge = merge
        self._reporters: list[Callable[[], Notice]] = []

    def report(self, reporter: Callable[[], Notice]) -> None:
        """Adds something that is asked at every boundary for what this process has to tell the others.

        Args:
            reporter: answers at once, and does not communicate.
        """
        self._reporters.append(reporter)

    def agree(self) -> Notice:
        """What any process has to tell. All processes call it, at the same boundary, and get the same answer.

        A request stays until :meth:`obeyed`; what a reporter says holds for this boundary.
        """
        mine = Notice(0)
        if self._stop.received is not None:
            mine |= Notice.STOP_SIGNAL
        if self._files is not None:
            mine |= Notice.STOP_FILE if self._files.is_asked(ControlFiles.STOP) else Notice(0)
            mine |= Notice.SAVE_FILE if self._files.is_asked(ControlFiles.SAVE) else Notice(0)
        for reporter in self._reporters:
            mine |= reporter()
        return Notice(self._merge(int(mine)))

    def obeyed(self, notice: Notice) -> None:
        """Removes the control files of requests that were carried out."""
        if self._files is not None:
            if Notice.STOP_FILE in notice:
                self._files.obeyed(ControlFiles.STOP)
            if Notice.SAVE_FILE in notice:
                self._files.obeyed(ControlFiles.SAVE)
