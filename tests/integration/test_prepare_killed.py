"""``poro data prepare`` is killed in the middle of what it writes, as the campaign does it many times over."""

import random
from pathlib import Path

from tests.faults import preparing
from tests.faults.tally import Budget


def test_killed_at_random_and_given_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    tally = preparing.campaign(Budget(trials=2), random.Random(3), tmp_path)
    assert not tally.failures
    assert tally.facts["kills"] >= 4
