"""Every moment of a step belongs to one part: on the host by the clock, on a device by its events."""

import time
from collections.abc import Callable

import pytest
import torch

from megatron_poro.parallel.step_clock import Event, Part, StepClock

CPU, GPU = torch.device("cpu"), torch.device("cuda")
EVERY = frozenset(Part)


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only goes when it is told to."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def _times(clock: StepClock) -> dict[Part, float]:
    """The parts that took any time."""
    return {part: seconds for part, seconds in clock.last.seconds().items() if seconds}


def test_what_runs_inside_another_part_is_counted_once(wait: Callable[[float], None]) -> None:
    clock = StepClock()
    with clock.step(CPU, watched=EVERY):
        wait(1)
        for _ in range(2):
            with clock.running(Part.COMPUTE):
                wait(2)
                with clock.running(Part.TENSOR):
                    wait(4)
                wait(8)
        with clock.running(Part.OPTIMIZER), clock.running(Part.OPTIMIZER):
            wait(16)
        wait(32)
    expected = {Part.COMPUTE: 20.0, Part.TENSOR: 8.0, Part.OPTIMIZER: 16.0, Part.OTHER: 33.0}
    assert _times(clock) == pytest.approx(expected)
    assert sum(clock.last.seconds().values()) == pytest.approx(77.0), "the step"


def test_part_that_is_not_watched_belongs_to_the_one_around_it(wait: Callable[[float], None]) -> None:
    clock = StepClock()
    with clock.step(CPU):
        with clock.running(Part.PIPELINE):
            wait(1)
        with clock.running(Part.COMPUTE):
            wait(2)
            with clock.running(Part.DATA):
                wait(4)
            with clock.running(Part.TENSOR):
                wait(8)
    assert clock.last.seconds_of(Part.COMPUTE) == pytest.approx(6.0)
    assert clock.last.seconds_of(Part.TENSOR) == pytest.approx(8.0)


def test_only_the_last_step_counts_and_nothing_between_two(wait: Callable[[float], None]) -> None:
    clock = StepClock()
    assert _times(clock) == {}
    for seconds in (1.0, 2.0):
        with clock.step(CPU, watched=EVERY), clock.running(Part.COMPUTE):
            wait(seconds)
        with clock.running(Part.COMPUTE):
            wait(50)
    assert _times(clock) == pytest.approx({Part.COMPUTE: 2.0})


def test_step_that_fails_ends_what_it_was_doing(wait: Callable[[float], None]) -> None:
    clock = StepClock()

    def broken() -> None:
        wait(1)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), clock.step(CPU, watched=EVERY):
        clock.timed(broken, Part.COMPUTE)()
    with clock.running(Part.TENSOR):
        wait(1)
    assert _times(clock) == pytest.approx({Part.COMPUTE: 1.0})


def test_timed_function_gives_what_it_gave(wait: Callable[[float], None]) -> None:
    clock = StepClock()
    timed = clock.timed(lambda seconds, *, answer: (wait(seconds), answer)[1], Part.DATA)
    with clock.step(CPU, watched=EVERY):
        assert timed(3.0, answer="this") == "this"
    assert _times(clock) == pytest.approx({Part.DATA: 3.0})


class _Event:
    """A device whose work takes 250 ms between two marks."""

    made = 0
    waited_for: Event | None = None

    def __init__(self) -> None:
        _Event.made += 1
        self.number = _Event.made
        self.is_set = False

    def record(self) -> None:
        self.is_set = True

    def synchronize(self) -> None:
        _Event.waited_for = self

    def elapsed_time(self, end: Event) -> float:
        assert isinstance(end, _Event)
        assert self.is_set
        assert end.is_set
        return 250.0 * (end.number - self.number)


def test_device_is_timed_by_events_and_waited_for_only_when_asked() -> None:
    clock = StepClock(make_event=_Event)
    _Event.made, _Event.waited_for = 0, None
    with clock.step(GPU):
        for _ in range(4):
            with clock.running(Part.COMPUTE), clock.running(Part.TENSOR):
                pass
        with clock.running(Part.OPTIMIZER):
            pass
    assert _Event.made == 16, "no marks but those of the parts that are watched"
    assert _Event.waited_for is None, "the step itself does not wait for the device"
    assert clock.last.seconds_of(Part.COMPUTE) == 2.0
    assert isinstance(_Event.waited_for, _Event)
    assert _Event.waited_for.number == 16, "and not for the optimizer"


def test_parts_of_a_device_add_up_to_its_step() -> None:
    clock = StepClock(make_event=_Event)
    _Event.made = 0
    with clock.step(GPU, watched=EVERY), clock.running(Part.COMPUTE), clock.running(Part.TENSOR):
        pass
    assert sum(clock.last.seconds().values()) == 0.25 * (_Event.made - 1)
