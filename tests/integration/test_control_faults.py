"""The campaigns on requests to stop and on two jobs, short enough for every day; and that they find a fault."""

import random
from pathlib import Path

import pytest
import torch._dynamo  # noqa: F401  DeepSpeed imports it in every process that is forked otherwise

from megatron_poro.train.lease import Lease
from tests.faults import claims, rewinds, signals, two_launchers
from tests.faults.tally import Budget


def test_every_process_leaves_at_the_same_step_whatever_it_was_doing(tmp_path: Path) -> None:
    kinds = ("start-up", "step", "evaluation", "save in flight", "stop file")
    tally = signals.campaign(Budget(trials=len(kinds)), random.Random(5), tmp_path, kinds)
    assert tally.failures == []
    assert set(tally.kinds) == set(kinds)


def test_one_of_two_jobs_trains(tmp_path: Path) -> None:
    kinds = ("locks", "no locks", "frozen elsewhere")
    tally = two_launchers.campaign(Budget(trials=len(kinds)), random.Random(5), tmp_path, kinds)
    assert tally.failures == []
    assert set(tally.kinds) == set(kinds)


def test_one_of_many_processes_gets_the_folder(tmp_path: Path) -> None:
    tally = claims.campaign(Budget(trials=6), random.Random(5), tmp_path)
    assert tally.failures == []
    assert set(tally.kinds) == {"locks", "no locks"}


def test_campaign_finds_two_holders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "_try_lock", lambda self: True)
    monkeypatch.setattr(Lease, "_create", lambda self, number: None)
    assert claims.campaign(Budget(trials=10), random.Random(5), tmp_path).failures


def test_campaign_finds_a_job_that_does_not_notice_its_takeover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "_look", lambda self: None)
    tally = two_launchers.campaign(Budget(trials=1), random.Random(5), tmp_path, ("frozen elsewhere",))
    assert len(tally.failures) == 1


def test_run_that_goes_back_again_and_again_ends_where_it_would_have(tmp_path: Path) -> None:
    tally = rewinds.campaign(Budget(trials=1), random.Random(8), tmp_path)
    assert tally.failures == []
    assert tally.facts["rewinds"] >= 2
