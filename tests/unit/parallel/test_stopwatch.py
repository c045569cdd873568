"""Time on the host by the clock, on a device by its events."""

import time

import pytest
import torch

from megatron_poro.parallel.stopwatch import Event, Stopwatch


class _Event:
    """A device whose work takes 250 ms between two marks."""

    made = 0
    waited_for: Event | None = None

    def __init__(self) -> None:
        _Event.made += 1
        self.at = 0

    def record(self) -> None:
        self.at = _Event.made

    def synchronize(self) -> None:
        _Event.waited_for = self

    def elapsed_time(self, end: Event) -> float:
        assert isinstance(end, _Event)
        assert self.at
        assert end.at
        return 250.0


def test_only_time_inside_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    stopwatch = Stopwatch()
    for _ in range(2):
        with stopwatch.running(torch.device("cpu")):
            pass
    assert stopwatch.take() == 2.5
    assert stopwatch.take() == 0.0


def test_device_is_timed_by_events_and_waited_for_once() -> None:
    stopwatch = Stopwatch(make_event=_Event)
    for _ in range(4):
        with stopwatch.running(torch.device("cuda")):
            assert _Event.waited_for is None, "the step itself does not wait for the device"
    assert stopwatch.take() == 1.0
    assert _Event.waited_for is not None
    assert stopwatch.take() == 0.0
