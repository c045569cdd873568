"""A training that is killed and started again, as the campaign does it many times over."""

import random
from pathlib import Path

from tests.faults import kills
from tests.faults.tally import Budget


def test_a_killed_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    tally = kills.campaign(Budget(trials=1), random.Random(2), tmp_path)
    assert not tally.failures
    assert tally.facts["kills that hit a living process"] > 0
