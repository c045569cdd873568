"""What goes wrong on request: at the n-th request, or at those that match, and a log of what happened.

A fault is data; the server acts on it. Requests that carry the header ``WITNESS_HEADER`` are neither counted nor
failed: a reader that judges the hub while a publisher is under fire must not catch the publisher's faults.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

WITNESS_HEADER = "X-Witness"


@dataclass(frozen=True)
class Answer:
    """The request is not carried out; this status comes back."""

    status: int
    retry_after_seconds: int | None = None


@dataclass(frozen=True)
class CutUpload:
    """The request is not carried out: the connection is reset once part of its body has come in."""

    after_bytes: int | None = None
    """None: half of the body. A body that is shorter is cut at its end, a request without one at once."""


@dataclass(frozen=True)
class CutReply:
    """The request is carried out and answered, but the connection ends after these many bytes of the body.

    huggingface_hub 2.4 resumes a download whose connection was closed and gives one up that was reset.
    """

    after_bytes: int | None = None
    """None: half of the body."""
    reset: bool = False
    """Whether the connection is reset; else it is closed as if all had been said."""


@dataclass(frozen=True)
class LoseReply:
    """The request is carried out, then the connection is reset before a word of the answer."""


@dataclass(frozen=True)
class Stall:
    """Nothing happens for a while, then all goes well. Ends at once when the hub is closed."""

    seconds: float


@dataclass(frozen=True)
class Call:
    """Calls a function, as the one that kills the client; then the connection is reset."""

    function: Callable[[], None]
    carried_out: bool = False
    """Whether the request is carried out before the function is called."""


Fault = Answer | CutUpload | CutReply | LoseReply | Stall | Call


@dataclass
class Order:
    """A fault and the requests that it waits for."""

    fault: Fault
    route: str | None = None
    method: str | None = None
    path: str | None = None
    at: int | None = None
    skip: int = 0
    times: int = 1

    def meets(self, number: int, route: str, method: str, path: str) -> bool:
        """Whether this request is of the kind that the order waits for."""
        return (
            self.times > 0
            and self.at in (None, number)
            and self.route in (None, route)
            and self.method in (None, method)
            and (self.path is None or re.search(self.path, path) is not None)
        )


@dataclass
class Entry:
    """One request in the log."""

    number: int
    """Place among the counted requests, from 1; 0 for a witness."""
    route: str
    method: str
    path: str
    fault: Fault | None
    status: int = 0
    """What was answered; 0 while it is under way, and if nothing was."""


class FaultPlan:
    """Orders, counting and the log; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: list[Order] = []
        self._count = 0
        self._log: list[Entry] = []

    def add(self, order: Order) -> None:
        with self._lock:
            self._orders.append(order)

    def clear(self) -> None:
        """Withdraws all orders, empties the log and counts from 1 again."""
        with self._lock:
            self._orders.clear()
            self._log = []
            self._count = 0

    def enter(self, route: str, method: str, path: str, *, witness: bool) -> Entry:
        """Counts and logs a request that has come in, and says which fault it meets."""
        with self._lock:
            number = 0 if witness else self._count + 1
            self._count = max(self._count, number)
            fault = None if witness else self._draw(number, route, method, path)
            entry = Entry(number, route, method, path, fault)
            self._log.append(entry)
            return entry

    def log(self) -> list[Entry]:
        with self._lock:
            return list(self._log)

    def _draw(self, number: int, route: str, method: str, path: str) -> Fault | None:
        for order in self._orders:
            if order.meets(number, route, method, path):
                if order.skip:
                    order.skip -= 1
                    continue
                order.times -= 1
                return order.fault
        return None
