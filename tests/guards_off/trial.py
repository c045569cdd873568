"""One guard's trial: a forked process in which pytest runs the guard's tests without it.

The parent has imported all tests, which takes seconds, and has run none, so each trial is a fresh pytest.
"""

import contextlib
import io
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.guards_off.outcome import Failure, Outcomes, Verdict, judge
from tests.guards_off.plugin import VARIABLE
from tests.guards_off.switch import Guard

LIMIT_SECONDS = 180.0
"""After which a trial is ended: a test that hangs without the guard is no test of it."""


def import_tests(tests: Sequence[str]) -> None:
    """Imports what tests stand in and all that they import, once for all trials; runs none.

    Args:
        tests: ids below ``tests/``.
    """
    files = sorted({test.partition("::")[0] for test in tests})
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *(f"tests/{file}" for file in files)])
    assert status == pytest.ExitCode.OK, said.getvalue()


def try_without(guard: Guard) -> Verdict:
    """Runs the tests of a guard without it."""
    outcomes = run_tests(guard.missed_by, without=guard)
    if outcomes is None:
        return Verdict(guard, [], [f"its tests did not end within {LIMIT_SECONDS:g} s"])
    return judge(guard, outcomes.passed, outcomes.failed)


def failures_with_all_guards(tests: Sequence[str], *, limit_seconds: float) -> dict[str, Failure]:
    """Runs tests with nothing switched off, which they must pass; returns those that do not."""
    outcomes = run_tests(tests, limit_seconds=limit_seconds)
    if outcomes is None:
        return {"all tests": Failure("call", "Timeout", f"they did not end within {limit_seconds:g} s")}
    ran = {id_.partition("[")[0] for id_ in (*outcomes.passed, *outcomes.failed)}
    absent = {
        test: Failure("collect", "Absent", "it did not run") for test in tests if test.partition("[")[0] not in ran
    }
    return {**absent, **outcomes.failed}


def run_tests(
    tests: Sequence[str], *, without: Guard | None = None, limit_seconds: float = LIMIT_SECONDS
) -> Outcomes | None:
    """Runs tests in a process of their own; None if they do not end in time.

    Args:
        tests: ids below ``tests/``.
        without: the guard to switch off.
        limit_seconds: how long they may take.
    """
    with tempfile.TemporaryDirectory(prefix="guards_off_") as name:
        folder = Path(name)
        child = os.fork()
        if child == 0:
            _run_child(tests, without, folder)
        deadline = time.monotonic() + limit_seconds
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):  # what a test that failed has left behind
            os.killpg(child, signal.SIGKILL)
        result = folder / "outcomes"
        if not result.exists():
            said = (folder / "output").read_text(errors="replace")
            return Outcomes(failed={"pytest": Failure("collect", "Death", said)})
        passed, failed = pickle.loads(result.read_bytes())
        return Outcomes(passed, failed)


def _run_child(tests: Sequence[str], without: Guard | None, folder: Path) -> None:
    """Body of the forked process; never returns."""
    try:
        os.setsid()
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.pop(VARIABLE, None)
        if without is not None:
            os.environ[VARIABLE] = without.name
        outcomes = Outcomes()
        options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "tests.guards_off.plugin"]
        options += [f"--basetemp={folder / 'tests'}", "--durations=0"]
        status = pytest.main([*options, *(f"tests/{test}" for test in tests)], plugins=[outcomes])
        if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            (folder / "outcomes").write_bytes(pickle.dumps((outcomes.passed, outcomes.failed)))
    finally:
        os._exit(0)
