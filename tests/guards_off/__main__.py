"""The campaign: each guard is switched off, its tests must fail, and ``guards.json`` says which did.

``python -m tests.guards_off`` tries all of them, which takes some minutes; ``--only NAME ...`` some. There is no seed,
since nothing is drawn. The exit status is 1 if a guard is not missed, or a test fails with nothing switched off.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch

from tests.guards_off.outcome import Failure, Verdict
from tests.guards_off.registry import BY_NAME, GUARDS
from tests.guards_off.switch import Guard, code_without
from tests.guards_off.trial import failures_with_all_guards, import_tests, try_without

SECONDS_WITH_ALL_GUARDS = 1200.0
"""How long all tests together may take with nothing switched off."""


def main() -> int:
    """Tries the guards one after the other; returns the exit status."""
    arguments = _arguments()
    guards = [BY_NAME[name] for name in arguments.only] if arguments.only else list(GUARDS)
    for guard in guards:
        code_without(guard)  # an entry that is stale ends the campaign before it begins
    torch.set_num_threads(1)  # trials are forked from this process
    tests = list(dict.fromkeys(test for guard in guards for test in guard.missed_by))
    import_tests(tests)
    began = time.monotonic()
    failing = failures_with_all_guards(tests, limit_seconds=SECONDS_WITH_ALL_GUARDS)
    for id_, failure in failing.items():
        print(f"{id_} fails with all guards on: {failure.error}: {failure.text}", file=sys.stderr)
    verdicts = []
    for guard in guards:
        verdicts.append(try_without(guard))
        _tell(verdicts[-1])
    record = _record(verdicts, failing, time.monotonic() - began)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{_table(verdicts)}\n\n{_count(verdicts)}.")
    return 0 if not failing and all(verdict.is_missed for verdict in verdicts) else 1


def _tell(verdict: Verdict) -> None:
    print(f"{verdict.guard.name}: {'missed' if verdict.is_missed else 'NOT missed'}", flush=True)
    for problem in verdict.problems:
        print(f"  {problem}", flush=True)


def _count(verdicts: Sequence[Verdict]) -> str:
    missed = sum(verdict.is_missed for verdict in verdicts)
    return f"{missed} of {len(verdicts)} guards are missed by a test when they are off"


def _table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown table."""
    rows = ["| guard | switched off by | tests that failed |", "|---|---|---|"]
    for verdict in verdicts:
        names = dict.fromkeys(id_.partition("::")[2].partition("[")[0] for id_ in verdict.missed_by)
        rows.append(f"| {verdict.guard.name} | {_cell(str(verdict.guard))} | {', '.join(names) or 'none'} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _record(verdicts: Sequence[Verdict], failing: dict[str, Failure], seconds: float) -> dict[str, Any]:
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
        "count": _count(verdicts),
        "guards": {verdict.guard.name: _of_guard(verdict.guard, verdict) for verdict in verdicts},
        "fail with all guards on": {id_: f"{one.error}: {one.text}" for id_, one in failing.items()},
        "seconds": round(seconds, 1),
    }


def _of_guard(guard: Guard, verdict: Verdict) -> dict[str, Any]:
    return {
        "keeps": guard.keeps,
        "switched off by": str(guard),
        "missed": verdict.is_missed,
        "tests that failed": list(verdict.missed_by),
        "problems": list(verdict.problems),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.guards_off", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=BY_NAME, metavar="NAME", help="some of the guards")
    parser.add_argument("--output", type=Path, default=Path("guards.json"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
