"""What can go wrong while one publishes: every fault at every kind of request, and a kill at every request."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tests.support.hub.faults import Answer, Call, CutReply, CutUpload, Fault, LoseReply, Stall
from tests.support.hub.server import Hub

STATUSES = (401, 403, 412, 429, 500, 503)
KILL_AT_REQUEST, KILL_AFTER_REQUEST, KILL_AT_MOMENT = "kill at a request", "kill after a request", "kill at a moment"
TIMEOUT_SECONDS = 1.5
"""After which the publisher counts a silent request as failed."""
STALL_SECONDS = 2.5
"""Longer than that, so the request is carried out when nobody waits for it any more."""

FAULTS: dict[str, Fault] = {
    **{str(status): Answer(status) for status in STATUSES},
    "429 with Retry-After": Answer(429, retry_after_seconds=1),
    "503 with Retry-After": Answer(503, retry_after_seconds=1),
    "cut upload": CutUpload(),
    "cut reply": CutReply(),
    "reset reply": CutReply(reset=True),
    "lost reply": LoseReply(),
    "stall": Stall(STALL_SECONDS),
}


@dataclass(frozen=True)
class Draw:
    """One thing that goes wrong.

    Attributes:
        kind: which.
        route: kind of request that a fault waits for; a kill waits for none.
        skip: requests of this kind, and before a kill of any kind, that go well first.
        times: requests that fail then.
        seconds: after the start, of a kill at a moment.
    """

    kind: str
    route: str = ""
    skip: int = 0
    times: int = 1
    seconds: float = 0.0

    @property
    def is_kill(self) -> bool:
        return self.kind in (KILL_AT_REQUEST, KILL_AFTER_REQUEST, KILL_AT_MOMENT)

    def order(self, hub: Hub, kill: Callable[[], None]) -> None:
        """Orders it from the hub; what comes at a moment is left to the caller."""
        if self.kind in FAULTS:
            hub.fail(FAULTS[self.kind], route=self.route, skip=self.skip, times=self.times)
        elif self.kind != KILL_AT_MOMENT:
            hub.fail(Call(kill, carried_out=self.kind == KILL_AFTER_REQUEST), at=self.skip + 1)


class Deck:
    """Everything that can go wrong, shuffled; drawn without putting back, until all has come once.

    Args:
        traffic: kinds of the requests of publications without faults, in order, one sequence for each.
        random: shuffles.
    """

    def __init__(self, traffic: Sequence[Sequence[str]], random: random.Random) -> None:
        routes = dict.fromkeys(route for requests in traffic for route in requests)
        self.cards = [Draw(kind, route) for kind in FAULTS for route in routes]
        longest = max(traffic, key=len)
        for kind in (KILL_AT_REQUEST, KILL_AFTER_REQUEST):
            self.cards += [Draw(kind, skip=number) for number in range(len(longest))]
        self.cards += [Draw(KILL_AT_MOMENT)] * len(longest)
        self.left: list[Draw] = []
        self._random = random

    def draw(self, traffic: Sequence[str], seconds: float) -> Draw:
        """The next thing that can go wrong with a publication that has these requests and takes so long."""
        fitting = self._fitting(traffic)
        if fitting is None:
            self.left = self._random.sample(self.cards, len(self.cards))
            fitting = self._fitting(traffic)
            assert fitting is not None, "every publication can be killed"
        card = self.left.pop(fitting)
        if card.kind == KILL_AT_MOMENT:
            return replace(card, seconds=self._random.uniform(0, 1.2 * seconds))
        if card.is_kill:
            return card
        times = 3 if self._random.random() < 0.15 else 1
        return replace(card, skip=self._random.randrange(Counter(traffic)[card.route]), times=times)

    def put_back(self, draw: Draw) -> None:
        """For what was drawn and met no request, since there were fewer than in the publication without faults."""
        card = replace(draw, skip=0, times=1) if draw.route else draw
        self.left.insert(self._random.randint(0, len(self.left)), card)

    def _fitting(self, traffic: Sequence[str]) -> int | None:
        """Place of the topmost card for such a publication."""
        places = range(len(self.left) - 1, -1, -1)
        return next((place for place in places if self._fits(self.left[place], traffic)), None)

    def _fits(self, card: Draw, traffic: Sequence[str]) -> bool:
        if card.is_kill:
            return card.skip < len(traffic)
        return card.route in traffic
