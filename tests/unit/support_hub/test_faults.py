"""Which requests a fault meets, and what the log says."""

import pytest

from tests.support.hub.faults import Answer, FaultPlan, LoseReply, Order

BUSY, LOST = Answer(503), LoseReply()


def met(plan: FaultPlan, *requests: tuple[str, str, str]) -> list[object]:
    """The faults that these requests (route, method, path) meet one after the other."""
    return [plan.enter(*request, witness=False).fault for request in requests]


COMMIT = ("commit", "POST", "/api/models/a/b/commit/main")
UPLOAD = ("lfs upload", "PUT", "/objects/a/b/0123")


def test_a_fault_meets_the_request_of_its_number_only() -> None:
    plan = FaultPlan()
    plan.add(Order(BUSY, at=2))
    assert met(plan, COMMIT, UPLOAD, COMMIT) == [None, BUSY, None]


@pytest.mark.parametrize(
    "order",
    [
        Order(BUSY, route="lfs upload"),
        Order(BUSY, method="PUT"),
        Order(BUSY, path="/objects/.*/0123"),
        Order(BUSY, route="lfs upload", method="PUT", path="b/0"),
    ],
)
def test_a_fault_meets_requests_that_match_everything_it_names(order: Order) -> None:
    plan = FaultPlan()
    plan.add(order)
    assert met(plan, COMMIT, UPLOAD, UPLOAD) == [None, BUSY, None]


def test_a_fault_that_names_two_things_is_not_met_by_one_of_them() -> None:
    plan = FaultPlan()
    plan.add(Order(BUSY, route="commit", path="other"))
    assert met(plan, COMMIT) == [None]


def test_some_go_well_first_and_then_as_many_fail_as_were_ordered() -> None:
    plan = FaultPlan()
    plan.add(Order(BUSY, route="commit", skip=1, times=2))
    assert met(plan, COMMIT, UPLOAD, COMMIT, COMMIT, COMMIT) == [None, None, BUSY, BUSY, None]


def test_one_request_meets_one_fault_and_the_next_order_waits() -> None:
    plan = FaultPlan()
    plan.add(Order(BUSY, route="commit"))
    plan.add(Order(LOST, route="commit"))
    assert met(plan, COMMIT, COMMIT, COMMIT) == [BUSY, LOST, None]


def test_witnesses_are_logged_but_neither_counted_nor_failed() -> None:
    plan = FaultPlan()
    plan.add(Order(BUSY, at=1))
    assert plan.enter(*COMMIT, witness=True).fault is None
    assert met(plan, COMMIT) == [BUSY]
    assert [entry.number for entry in plan.log()] == [0, 1]


def test_clearing_withdraws_orders_and_counts_anew() -> None:
    plan = FaultPlan()
    plan.add(Order(BUSY, at=2))
    met(plan, COMMIT)
    plan.clear()
    assert plan.log() == []
    assert met(plan, COMMIT, COMMIT) == [None, None]
    assert [entry.number for entry in plan.log()] == [1, 2]
