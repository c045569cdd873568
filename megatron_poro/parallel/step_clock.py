"""Where the time of a step goes: every moment of it belongs to one part, so that the parts add up to the step.

A mark is set wherever another part begins. What runs inside a part and belongs to another one, such as a collective in
a backward pass, ends the outer part and begins it again afterwards: nothing is counted twice. On a CPU a mark is a time
of the clock; on a GPU, where the host runs ahead, it is an event in the work of the device.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch

T = TypeVar("T")


class Part(str, Enum):
    """What a process does in a step. Waiting for other processes belongs to the part that waits for them."""

    COMPUTE = "compute"
    """Forward and backward passes, without what they communicate."""

    TENSOR = "tensor"
    """Collectives among the processes that share a layer."""

    PIPELINE = "pipeline_and_bubble"
    """Sending to, receiving from and waiting for other stages, the weights that stages share included."""

    DATA = "data"
    """What replicas exchange: sums of gradients, losses and their weights."""

    OPTIMIZER = "optimizer"
    """Gradient norm, clipping, update, and gathering the new weights."""

    AGREEMENT = "agreement"
    """What all processes of a replica or of the run tell each other: loss, norm, whether the step is taken."""

    LOADING = "loading"
    """Waiting for batches and bringing them to the device."""

    OTHER = "other"
    """What is left of the step."""


COMPUTING = frozenset({Part.COMPUTE, Part.TENSOR})
"""The parts that must be told apart to know how long a process computes."""


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


class Mark(NamedTuple):
    """The moment at which a part begins, and with it the one before ends."""

    event: Event
    part: Part


class StepMarks:
    """The marks of one step, in their order."""

    def __init__(self, marks: Sequence[Mark] = ()) -> None:
        self._marks = marks

    def seconds_of(self, part: Part) -> float:
        """How long a part took; waits for a GPU to have come to its end."""
        spans = [(begin.event, end.event) for begin, end in pairwise(self._marks) if begin.part is part]
        if spans:
            spans[-1][1].synchronize()
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000

    def seconds(self) -> dict[Part, float]:
        """Every part's seconds; their sum is the time between the first mark and the last."""
        return {part: self.seconds_of(part) for part in Part}


class StepClock:
    """Sets the marks of a step while one is under way, and does nothing outside.

    Not bound to a thread: autograd runs a GPU's backward pass in a thread of its own, while the caller waits.

    Args:
        make_event: makes a mark for work on a GPU.

    Attributes:
        last: the marks of the last step, or so far of the one under way.
    """

    def __init__(self, make_event: Callable[[], Event] | None = None) -> None:
        self.last = StepMarks()
        self._make_device_event = make_event or _device_event
        self._make_event: Callable[[], Event] = _HostEvent
        self._marks: list[Mark] = []
        self._watched = frozenset[Part]()
        self._part = Part.OTHER

    @contextmanager
    def step(self, device: torch.device, *, watched: frozenset[Part] = COMPUTING) -> Iterator[None]:
        """Measures the block as one step.

        Args:
            device: what the process computes on.
            watched: the parts that are told apart; time of the others counts to the part around them. All of them,
                ``frozenset(Part)``, make parts that add up to the step, and a few marks more.
        """
        self._make_event = _HostEvent if device.type == "cpu" else self._make_device_event
        self._marks = []
        self.last, self._watched, self._part = StepMarks(self._marks), watched, Part.OTHER
        try:
            with self.running(Part.OTHER):
                yield
        finally:
            self._watched = frozenset()

    @contextmanager
    def running(self, part: Part) -> Iterator[None]:
        """Counts the time of the block to a part, except for what it counts to others."""
        if part not in self._watched:
            yield
            return
        around = self._part
        self._begin(part)
        try:
            yield
        finally:
            self._begin(around)

    def timed(self, function: Callable[..., T], part: Part) -> Callable[..., T]:
        """The function, whose time counts to a part."""

        def run(*arguments: Any, **options: Any) -> T:
            with self.running(part):
                return function(*arguments, **options)

        return run

    def _begin(self, part: Part) -> None:
        event = self._make_event()
        event.record()
        self._marks.append(Mark(event, part))
        self._part = part


class _HostEvent:
    """A moment of the host's clock."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "_HostEvent", /) -> float:
        return (end.at - self.at) * 1000


def _device_event() -> Event:
    return cast(Event, torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
