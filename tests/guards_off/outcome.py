"""What tests did without a guard, and whether that shows that the guard was missed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from tests.guards_off.switch import Guard

_ASSERTIONS = ("AssertionError", "Failed", "RankFailure")
"""A claim that does not hold, an error that was not raised, and either of them on a forked rank."""

_UNPACKING = re.compile(r"(not enough|too many) values to unpack")
"""What ``(problem,) = problems`` says: there are more or fewer than the test claims."""

_BREAKAGE = re.compile(
    r"^(ImportError|ModuleNotFoundError|SyntaxError|NameError|UnboundLocalError)\b", re.MULTILINE
)  # fmt: skip
"""What a switch that is itself broken would do, in the traceback of a rank."""


@dataclass(frozen=True)
class Failure:
    """How a test failed.

    Attributes:
        phase: ``setup``, ``call`` or ``teardown``; ``collect`` if it could not even be imported.
        error: class of the exception.
        text: what it says.
    """

    phase: str
    error: str
    text: str

    def shows(self, guard: Guard) -> bool:
        """Whether it is what the guard keeps from happening, and not a switch that is broken."""
        if self.phase != "call" or _BREAKAGE.search(self.text):
            return False
        if self.error == "ValueError" and _UNPACKING.match(self.text):
            return True
        return self.error in _ASSERTIONS or self.error == guard.error


@dataclass(eq=False)  # pytest keeps plugins in sets
class Outcomes:
    """A pytest plugin that notes how each test ended.

    Attributes:
        passed: ids of tests.
        failed: how the others failed, by id.
    """

    passed: list[str] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: "pytest.CallInfo[None]"):  # type: ignore[no-untyped-def]
        report = yield
        if call.excinfo is not None:
            kind = call.excinfo.type.__name__
            self.failed.setdefault(_below_tests(item.nodeid), Failure(call.when, kind, str(call.excinfo.value)))
        elif call.when == "call":
            self.passed.append(_below_tests(item.nodeid))
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed[_below_tests(report.nodeid)] = Failure("collect", "CollectError", str(report.longrepr))


@dataclass(frozen=True)
class Verdict:
    """What switching a guard off has shown.

    Attributes:
        guard: which.
        missed_by: ids of the tests that failed as they should, parameters included.
        problems: what keeps the guard from counting as missed, one phrase each.
    """

    guard: Guard
    missed_by: Sequence[str]
    problems: Sequence[str]

    @property
    def is_missed(self) -> bool:
        """Whether each test of the entry failed for the right reason."""
        return not self.problems


def judge(guard: Guard, passed: Sequence[str], failed: Mapping[str, Failure]) -> Verdict:
    """Holds what the tests of an entry did against what it says of them."""
    missed_by, problems = [], []
    for test in guard.missed_by:
        own = {id_: failure for id_, failure in failed.items() if _is_of(id_, test)}
        right = [id_ for id_, failure in own.items() if failure.shows(guard)]
        wrong = [f"{id_} failed otherwise: {one.phase}, {one.error}: {_short(one.text)}" for id_, one in own.items()]
        missed_by += right
        if not right:
            ran = any(_is_of(id_, test) for id_ in passed)
            problems += wrong or [f"{test} passes without it" if ran else f"{test} did not run"]
    problems += [f"{id_} cannot be collected: {_short(one.text)}" for id_, one in failed.items() if "::" not in id_]
    return Verdict(guard, missed_by, problems)


def _is_of(id_: str, test: str) -> bool:
    """Whether an id is a test's own or one of its parameters'."""
    return id_.partition("[")[0] == test.partition("[")[0] and id_.startswith(test)


def _below_tests(id_: str) -> str:
    return id_.removeprefix("tests/")


def _short(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:160] if lines else "nothing said"
