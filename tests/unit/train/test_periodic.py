"""When copies of the weights are compared."""

from types import SimpleNamespace
from typing import Any

import pytest

from megatron_poro.train.periodic import is_replica_check_due


def run_with(every: int) -> Any:
    """As much of a run as is asked."""
    return SimpleNamespace(config=SimpleNamespace(guards=SimpleNamespace(replica_check_every_steps=every)))


def test_copies_are_compared_every_so_many_steps() -> None:
    due = [step for step in range(1, 13) if is_replica_check_due(run_with(5), step, saving=False)]
    assert due == [5, 10]


def test_copies_are_compared_before_every_save() -> None:
    assert is_replica_check_due(run_with(5), 3, saving=True)


@pytest.mark.parametrize("saving", [True, False])
def test_copies_are_never_compared_where_the_guard_is_off(saving: bool) -> None:
    assert not is_replica_check_due(run_with(0), 5, saving=saving)
