"""The campaign itself, a few trials long; and that it fails when it must."""

import random

import pytest

from tests.faults.tally import Budget
from tests.publishing.campaign import CLAIM, STARTS, TRANSPORTS, Campaign
from tests.publishing.toy_run import make_toy_run


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A campaign over LFS that begins with nothing on the hub."""
    folder = tmp_path_factory.mktemp("publishing")
    run = make_toy_run(folder / "run")
    (folder / "trials").mkdir()
    return Campaign(run, folder / "trials", random.Random(5), transports=TRANSPORTS[:1], starts=STARTS[:1])


def test_publishing_survives_what_is_drawn(campaign: Campaign) -> None:
    tally = campaign.trials(Budget(trials=1))
    assert tally.failures == []
    assert tally.claim == CLAIM
    assert {never: zero.found for never, zero in campaign.zeros.items()} == dict.fromkeys(campaign.zeros, 0)
    assert {"branches that differ from the control", "values of main that were broken"} < campaign.zeros.keys()
    assert all(zero.among for zero in campaign.zeros.values())
    assert tally.facts["publications under fire"] >= 1
    assert campaign.zeros["branches that differ from the control"].among == 4
    assert campaign.zeros["milestones' branches that were partial"].among >= 3


def test_a_branch_that_differs_fails_the_trial(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {**campaign.wanted, "main": {**campaign.wanted["main"], "config.json": "0" * 64}}
    monkeypatch.setattr(campaign, "wanted", other)
    with pytest.raises(AssertionError, match="branch main differs from the control"):
        campaign.trial(100)
    assert campaign.zeros["branches that differ from the control"].found == 1
