"""The deck of faults: all of it comes, in an order that the seed decides."""

import contextlib
import http.client
import random
import threading
from pathlib import Path

import pytest

from tests.publishing.drawing import FAULTS, KILL_AFTER_REQUEST, KILL_AT_MOMENT, KILL_AT_REQUEST, Deck, Draw
from tests.support.hub.server import Hub
from tests.unit.support_hub.caller import call

PLAIN = ["references", "commit", "commit", "tree"]
XET = ["references", "xet token", "commit"]


def deck(seed: int = 1) -> Deck:
    return Deck([PLAIN, XET], random.Random(seed))


def test_every_fault_comes_at_every_kind_of_request_and_a_kill_at_every_request() -> None:
    cards = deck().cards
    for kind in FAULTS:
        assert {card.route for card in cards if card.kind == kind} == {*PLAIN, *XET}
    for kind in (KILL_AT_REQUEST, KILL_AFTER_REQUEST):
        assert sorted(card.skip for card in cards if card.kind == kind) == [0, 1, 2, 3]
    assert sum(card.kind == KILL_AT_MOMENT for card in cards) == len(PLAIN)


def test_nothing_comes_twice_before_all_has_come() -> None:
    of_plain = [card for card in deck().cards if card.route in ("", *PLAIN)]
    cards = deck()
    drawn = [cards.draw(PLAIN, 1.0) for _ in of_plain]
    assert len({(card.kind, card.route) for card in drawn if not card.is_kill}) == len(FAULTS) * len(set(PLAIN))
    assert {card.route for card in cards.left} == {"xet token"}


def test_what_cannot_happen_to_a_publication_waits_for_another() -> None:
    cards = deck()
    drawn = [cards.draw(XET, 1.0) for _ in range(len(cards.cards))]
    assert {card.route for card in drawn if card.route} == set(XET)
    assert max(card.skip for card in drawn) < len(XET)


def test_the_seed_decides() -> None:
    def first(seed: int) -> list[Draw]:
        cards = deck(seed)
        return [cards.draw(PLAIN, 1.0) for _ in range(10)]

    assert first(1) == first(1) != first(2)


def test_what_met_nothing_comes_again() -> None:
    cards = deck()
    drawn = next(card for card in (cards.draw(PLAIN, 1.0) for _ in range(100)) if card.skip and not card.is_kill)
    before = len(cards.left)
    cards.put_back(drawn)
    assert len(cards.left) == before + 1
    assert Draw(drawn.kind, drawn.route) in cards.left


@pytest.mark.parametrize("kind", [*FAULTS, KILL_AT_REQUEST, KILL_AFTER_REQUEST])
def test_a_draw_is_met_by_the_request_it_means(tmp_path: Path, kind: str) -> None:
    killed = threading.Event()
    draw = Draw(kind, skip=1) if kind.startswith("kill") else Draw(kind, "whoami", skip=1)
    with Hub(tmp_path) as hub:
        draw.order(hub, killed.set)
        hub._shared.closing.set()  # a stall does not wait then
        for _ in range(3):
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                call(hub, "GET", "/api/whoami-v2")
        assert [entry.fault is not None for entry in hub.log] == [False, True, False]
    assert killed.is_set() == draw.is_kill
