"""Adds up how long parts of a step take: by the clock on a CPU, by events on a GPU, where the host runs ahead."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch


class Event(Protocol):
    """A mark in the work of a device, as ``torch.cuda.Event``."""

    def record(self) -> None:
        """Sets the mark after the work that has been handed to the device."""
        ...

    def synchronize(self) -> None:
        """Waits until the device has come to the mark."""
        ...

    def elapsed_time(self, end: Any, /) -> float:
        """Milliseconds from this mark to another."""
        ...


def _device_event() -> Event:
    return cast(Event, torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]


class Stopwatch:
    """Runs during ``with`` blocks; :meth:`take` gives the sum and starts anew.

    Args:
        make_event: makes a mark for work on a GPU.
    """

    def __init__(self, make_event: Callable[[], Event] = _device_event) -> None:
        self._seconds = 0.0
        self._spans: list[tuple[Event, Event]] = []
        self._make_event = make_event

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Counts the time of the block on a device."""
        if device.type == "cpu":
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
        else:
            begin, end = self._make_event(), self._make_event()
            begin.record()
            yield
            end.record()
            self._spans.append((begin, end))

    def take(self) -> float:
        """Seconds since the last time; waits for a GPU to have done the work that is counted."""
        seconds, spans = self._seconds, self._spans
        self._seconds, self._spans = 0.0, []
        if spans:
            spans[-1][1].synchronize()
        return seconds + sum(begin.elapsed_time(end) for begin, end in spans) / 1000
