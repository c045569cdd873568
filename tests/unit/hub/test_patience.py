"""When a request is repeated, how long one waits, and what a refusal says."""

import pytest

from megatron_poro.errors import HubError, HubUnavailableError
from megatron_poro.hub.patience import Patience, Trouble
from megatron_poro.hub.refusals import refusal


class Clock:
    def __init__(self) -> None:
        self.pauses: list[float] = []


def patience(clock: Clock, attempts: int = 5) -> Patience:
    return Patience(attempts=attempts, first_wait=2.0, longest_wait=10.0, sleep=clock.pauses.append)


def failing(times: int, tries: list[int]) -> int:
    tries.append(1)
    if len(tries) <= times:
        raise OSError("down")
    return len(tries)


def test_pauses_double_up_to_the_longest() -> None:
    clock, tries = Clock(), list[int]()
    assert patience(clock).ask("x", lambda: failing(4, tries), lambda error: Trouble("down")) == 5
    assert clock.pauses == [2.0, 4.0, 8.0, 10.0]


def test_a_server_may_ask_for_a_longer_pause_but_not_for_any() -> None:
    clock, tries = Clock(), list[int]()
    patience(clock).ask(
        "x", lambda: failing(2, tries), lambda error: Trouble("busy", 7.0 if len(tries) == 1 else 900.0)
    )
    assert clock.pauses == [7.0, 10.0]


def test_the_last_failure_says_what_and_how_often() -> None:
    clock, tries = Clock(), list[int]()
    with pytest.raises(
        HubUnavailableError, match=r"^listing failed: down \(tried 3 times\)\..*again later\.$"
    ) as caught:
        patience(clock, 3).ask("listing", lambda: failing(9, tries), lambda error: Trouble("down"))
    assert caught.value.exit_status == 75
    assert len(tries) == 3
    assert len(clock.pauses) == 2


def test_what_cannot_pass_is_not_repeated() -> None:
    clock, tries = Clock(), list[int]()
    with pytest.raises(OSError, match="down"):
        patience(clock).ask("x", lambda: failing(9, tries), lambda error: None)
    assert (len(tries), clock.pauses) == (1, [])


@pytest.mark.parametrize("status", [408, 409, 412, 425, 429, 500, 502, 503, 504])
def test_some_answers_pass(status: int) -> None:
    assert str(status) in refusal(status, doing="x", name="a/b").text


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "uploading was refused: there is no valid token (said). Set HF_TOKEN to a token that may write to a/b"),
        (403, "uploading was refused: the token may not write to a/b (said)."),
        (404, "uploading failed: the Hub does not know it (said)."),
        (413, "uploading was refused as too large (said)."),
        (400, "uploading was refused with status 400 (said)."),
    ],
)
def test_others_are_told_to_the_user(status: int, sentence: str) -> None:
    with pytest.raises(HubError) as caught:
        refusal(status, doing="uploading", name="a/b", said=" said.\n")
    assert str(caught.value).startswith(sentence)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(("value", "wait"), [("120", 120.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("", None)])
def test_the_pause_that_a_server_asks_for_is_read(value: str, wait: float | None) -> None:
    assert refusal(429, doing="x", name="a/b", headers={"Retry-After": value}).wait == wait
