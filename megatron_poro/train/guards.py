"""What may end a run before its last step, and the exit codes a command reports it with.

A request to stop (SIGTERM, SIGUSR1) is noted by a signal handler and acted on at the next step boundary, when all
processes have agreed on it: one process alone may get the signal. The run then saves and ends with
``ExitCode.STOPPED``, which tells a job script to start it again. A loss or gradient that is not finite raises
:class:`~megatron_poro.errors.EngineError` in the engine, on all processes alike, and nothing is saved after it.
"""

import signal
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Any

from megatron_poro.logs import get_logger

logger = get_logger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class ExitCode(IntEnum):
    """How a training command ends. torchrun itself ends with 1 whenever a process of its did not end with 0."""

    FINISHED = 0
    """The run reached its last step, or ``run.stop_after_steps``."""

    BUG = 1
    """An error that is the program's, with its traceback."""

    BAD_INPUT = 2
    """An error that is the input's (configuration, data, checkpoint, a loss that is not finite), in one sentence."""

    STOPPED = 75
    """A signal asked the run to stop; it has saved and goes on when started again (``EX_TEMPFAIL`` of sysexits.h)."""

    INTERRUPTED = 130
    """Ctrl-C; nothing was saved."""


class StopRequest:
    """Notes signals that ask the run to stop, for the length of a ``with`` block in the main thread."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self._received is not None

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # nothing but a note: a handler that logs can meet a lock the interrupted code holds
        self._received = signal.Signals(number)
