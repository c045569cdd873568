"""The fault campaign: real trainings, faults drawn by a seed, and ``reliability.json`` with every count.

``python -m tests.faults --minutes 30 --seed 1`` gives each campaign its share of the time, ``--trials N`` each so many
trials, and ``--only NAME ...`` takes some of them; the report keeps what it says of the others. The exit code is 1 if
any trial failed.
"""

import argparse
import json
import logging
import platform
import random
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from tests.faults import (
    checkpoint_damage,
    checkpoint_death,
    checkpoint_disk,
    checkpoint_layouts,
    checkpoint_resume,
    claims,
    guards,
    hangs,
    kills,
    preparing,
    replicas,
    rewinds,
    signals,
    two_launchers,
)
from tests.faults.tally import Budget, Campaign, Tally

CAMPAIGNS: dict[str, Campaign] = {
    "kills": kills.campaign,
    "death-in-save": checkpoint_death.campaign,
    "damage": checkpoint_damage.campaign,
    "resume": checkpoint_resume.campaign,
    "layouts": checkpoint_layouts.campaign,
    "disk": checkpoint_disk.campaign,
    "signals": signals.campaign,
    "launchers": two_launchers.campaign,
    "claims": claims.campaign,
    "rewinds": rewinds.campaign,
    "guards": guards.campaign,
    "replicas": replicas.campaign,
    "hangs": hangs.campaign,
    "prepare": preparing.campaign,
}


def main() -> int:
    """Runs the campaigns one after the other; returns the exit code."""
    arguments = _arguments()
    torch.set_num_threads(1)  # the processes of a run are forked from this one
    logging.getLogger("megatron_poro").setLevel(logging.CRITICAL)  # a damaged checkpoint is news elsewhere
    chosen = arguments.only or list(CAMPAIGNS)
    share = None if arguments.minutes is None else arguments.minutes * 60 / len(chosen)
    failed = 0
    for name in chosen:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"faults_{name}_") as folder:
            budget = Budget(trials=arguments.trials, seconds=share)
            tally = CAMPAIGNS[name](budget, random.Random(f"{arguments.seed} {name}"), Path(folder))
        _note(arguments.output, name, _record(tally, arguments.seed, time.monotonic() - began))
        failed += len(tally.failures)
        print(f"{name}: {tally.trials} trials, {len(tally.failures)} failed. {tally.claim}.", flush=True)
        for failure in tally.failures[:3]:
            print(f"  {failure}", flush=True)
    print(f"\n{_table(json.loads(arguments.output.read_text()))}\n\n{arguments.output} has the counts of each kind.")
    return 1 if failed else 0


def _note(path: Path, name: str, record: dict[str, Any]) -> None:
    """Puts one campaign's record into the report; those of other campaigns stay."""
    report = json.loads(path.read_text()) if path.exists() else {}
    report[name] = record
    path.write_text(json.dumps(report, indent=1) + "\n")


def _table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    rows = ["| campaign | claim | trials | failed |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {one['claim']} | {one['trials']:,} | {one['failed']} |" for name, one in report.items()]
    return "\n".join(rows)


def _record(tally: Tally, seed: int, seconds: float) -> dict[str, Any]:
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": seed,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
        "claim": tally.claim,
        "trials": tally.trials,
        "failed": len(tally.failures),
        "failures": tally.failures,
        "kinds": dict(sorted(tally.kinds.items())),
        "facts": tally.facts,
        "seconds": round(seconds, 1),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, help="for all campaigns together")
    parser.add_argument("--trials", type=int, help="of each campaign")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CAMPAIGNS, help="some of the campaigns")
    parser.add_argument("--output", type=Path, default=Path("reliability.json"))
    arguments = parser.parse_args()
    if arguments.minutes is None and arguments.trials is None:
        parser.error("give --minutes, --trials or both: a campaign must end")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
