"""Requests to stop are noted, and only while a run wants to know."""

import os
import signal

import pytest

from megatron_poro.train.control import STOP_SIGNALS, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_noted_and_does_not_kill(number: signal.Signals) -> None:
    with StopRequest() as request:
        assert not request.received
        os.kill(os.getpid(), number)
        assert request.received


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
