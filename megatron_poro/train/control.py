"""Requests from outside to a run that is under way.

A request to stop (SIGTERM, SIGUSR1) is noted by a signal handler and acted on at the next step boundary, when all
processes have agreed on it: one process alone may get the signal. The run then saves and ends with
``ExitCode.STOPPED``, which tells a job script to start it again.
"""

import signal
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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
