"""The registry fits the source, a trial cannot be won by accident, and the campaign itself, a few guards long."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.index import _IndexUnpickler
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.data.audit import _disagreements
from tests.guards_off import __main__ as campaign
from tests.guards_off.outcome import Failure, judge
from tests.guards_off.registry import BY_NAME, GUARDS, ROOMS
from tests.guards_off.switch import Guard, StaleEntryError, code_without, function_of, switched_off

TESTS = Path(__file__).parent.parent

SHORT = (
    "spike of the loss",
    "free space",
    "one that stays is proven",
    "agreement on signals",
    "vocabulary, at the start",
)
"""Guards of the short form: fast, and of several rooms."""

SAMPLE = Guard(
    name="sample",
    keeps="nothing",
    where="megatron_poro.checkpoint.manifest:problems",
    off="return [str(error)]",
    instead="return []",
    missed_by=("unit/a.py::test_one", "unit/a.py::test_two[x]"),
)


# --- the registry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_every_entry_fits_the_source_and_changes_it(guard: Guard) -> None:
    code, before = code_without(guard), function_of(guard).__code__
    assert (code.co_code, code.co_consts) != (before.co_code, before.co_consts)


def test_every_test_of_an_entry_is_there() -> None:
    absent = []
    for path in {test.partition("::")[0] for guard in GUARDS for test in guard.missed_by}:
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8")) if (TESTS / path).exists() else ast.Module([], [])
        there = {f"{path}::{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}
        wanted = {
            test.partition("[")[0] for guard in GUARDS for test in guard.missed_by if test.startswith(f"{path}::")
        }
        absent += sorted(wanted - there)
    assert absent == []


def test_every_entry_has_a_name_of_its_own_and_says_what_the_guard_keeps() -> None:
    assert len(BY_NAME) == len(GUARDS) == sum(map(len, ROOMS.values()))
    assert [guard.name for guard in GUARDS if not guard.missed_by or not guard.keeps or guard.keeps.endswith(".")] == []


def test_no_guard_is_registered_twice() -> None:
    switches = [(guard.where, guard.off, guard.instead) for guard in GUARDS]
    assert len(set(switches)) == len(switches)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"where": "megatron_poro.checkpoint.manifest:gone"}, r"manifest:gone does not exist"),
        ({"where": "megatron_poro.gone:read"}, r"megatron_poro\.gone:read does not exist"),
        ({"where": "megatron_poro.checkpoint.manifest:FORMAT"}, "is no function"),
        ({"off": "if the source has changed:"}, "is 0 times in"),
        ({"off": "problem"}, r"'problem' is \d+ times in .*, not once"),
        ({"instead": "return ("}, "does not compile"),
        ({"instead": "yield 1"}, "is a generator"),
    ],
)
def test_an_entry_that_is_stale_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(StaleEntryError, match=rf"guard 'sample'.*{said}"):
        code_without(replace(SAMPLE, **change))


# --- switches --------------------------------------------------------------------------------------------------------


def test_a_guard_is_off_for_whoever_has_imported_it_and_on_again_afterwards(tmp_path: Path) -> None:
    imported = manifest.problems
    with switched_off(SAMPLE):
        assert imported(tmp_path) == []
    assert len(imported(tmp_path)) == 1


def test_functions_of_all_kinds_are_switched() -> None:
    method = BY_NAME["names in the index"]  # uses super(), so it has the class around it
    with switched_off(method):
        assert _IndexUnpickler.find_class.__code__.co_freevars == ("__class__",)
    for wrapped in ("k refused in a row", "format of the state", "one error for all"):  # property, classmethod, context
        with switched_off(BY_NAME[wrapped]):
            off = function_of(BY_NAME[wrapped]).__code__
        assert function_of(BY_NAME[wrapped]).__code__ != off
    with switched_off(BY_NAME["audit of the index"]):
        assert list(_disagreements(None, None)) == []  # type: ignore[arg-type]


def test_the_default_values_of_a_function_stay(tmp_path: Path) -> None:
    with switched_off(BY_NAME["at least one is kept"]):
        assert CheckpointStore(tmp_path).keep_last == 2


# --- verdicts --------------------------------------------------------------------------------------------------------

ONE, TWO = SAMPLE.missed_by
RIGHT = Failure("call", "Failed", "DID NOT RAISE CheckpointError")


def test_a_guard_is_missed_if_each_of_its_tests_fails() -> None:
    verdict = judge(SAMPLE, [f"{ONE}[b]"], {f"{ONE}[a]": RIGHT, TWO: RIGHT})
    assert verdict.is_missed
    assert verdict.missed_by == [f"{ONE}[a]", TWO]


@pytest.mark.parametrize(
    ("passed", "failed", "problem"),
    [
        ([ONE], {TWO: RIGHT}, "unit/a.py::test_one passes without it"),
        ([], {TWO: RIGHT}, "unit/a.py::test_one did not run"),
        ([TWO, "unit/a.py::test_one_more"], {ONE: RIGHT, "unit/a.py::test_two[y]": RIGHT}, r"test_two\[x\] passes"),
        ([], {ONE: Failure("setup", "AssertionError", "x"), TWO: RIGHT}, "test_one failed otherwise: setup"),
        ([], {ONE: Failure("call", "NameError", "name 'x' is not defined"), TWO: RIGHT}, "otherwise: call, NameError"),
        ([], {ONE: Failure("call", "KeyError", "'x'"), TWO: RIGHT}, "otherwise: call, KeyError"),
        ([], {ONE: Failure("call", "RankFailure", "rank 1:\n...\nNameError: x"), TWO: RIGHT}, "otherwise: call"),
        ([], {ONE: RIGHT, TWO: RIGHT, "unit/a.py": Failure("collect", "CollectError", "x")}, "cannot be collected"),
    ],
)
def test_a_failure_of_another_kind_shows_nothing(passed: list[str], failed: dict[str, Failure], problem: str) -> None:
    verdict = judge(SAMPLE, passed, failed)
    assert not verdict.is_missed
    assert any(re.search(problem, one) for one in verdict.problems), verdict.problems


def test_unpacking_one_of_none_is_a_claim_that_does_not_hold() -> None:
    failure = Failure("call", "ValueError", "not enough values to unpack (expected 1, got 0)")
    assert failure.shows(SAMPLE)
    assert not Failure("call", "ValueError", "invalid literal for int()").shows(SAMPLE)


def test_an_error_that_an_entry_expects_counts() -> None:
    expecting = replace(SAMPLE, missed_by=(ONE,), error="KeyError")
    assert judge(expecting, [], {ONE: Failure("call", "KeyError", "'x'")}).is_missed


# --- the campaign ----------------------------------------------------------------------------------------------------


def test_guards_that_are_switched_off_are_missed(tmp_path: Path) -> None:
    output = tmp_path / "guards.json"
    command = [sys.executable, "-m", "tests.guards_off", "--output", str(output), "--only", *SHORT]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(SHORT)} of {len(SHORT)} guards are missed by a test when they are off" in done.stdout
    assert "| free space | checkpoint.store:CheckpointStore.stage: `if free < needed_bytes:` becomes" in done.stdout
    report = json.loads(output.read_text())
    assert list(report["guards"]) == list(SHORT)
    assert all(one["missed"] and one["tests that failed"] for one in report["guards"].values())
    assert report["fail with all guards on"] == {}


@pytest.mark.parametrize(
    ("failed", "failing", "status", "told"),
    [
        ({ONE: RIGHT, TWO: RIGHT}, {}, 0, "1 of 1 guards are missed"),
        ({ONE: RIGHT}, {}, 1, "0 of 1 guards are missed"),
        ({ONE: RIGHT, TWO: RIGHT}, {ONE: RIGHT}, 1, f"{ONE} fails with all guards on"),
    ],
)
def test_a_guard_that_nobody_misses_fails_the_campaign(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failed: dict[str, Failure],
    failing: dict[str, Failure],
    status: int,
    told: str,
) -> None:
    monkeypatch.setattr(campaign, "BY_NAME", {"sample": SAMPLE})
    monkeypatch.setattr(campaign, "import_tests", lambda tests: None)
    monkeypatch.setattr(campaign, "failures_with_all_guards", lambda tests, limit_seconds: failing)
    monkeypatch.setattr(campaign, "try_without", lambda guard: judge(guard, [], failed))
    monkeypatch.setattr(sys, "argv", ["guards_off", "--only", "sample", "--output", str(tmp_path / "guards.json")])
    assert campaign.main() == status
    assert told in "".join(capsys.readouterr())
