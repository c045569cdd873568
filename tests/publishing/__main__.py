"""The publishing campaign: faults drawn by a seed, and ``publishing.json`` with the trials beside every zero.

``python -m tests.publishing --trials 100 --seed 1``; ``--minutes 30`` ends it by the clock, both whichever comes first.
The exit status is 1 if any trial failed.
"""

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.faults.tally import Budget
from tests.publishing.campaign import CLAIM, TRANSPORTS, Campaign
from tests.publishing.toy_run import make_toy_run


def main() -> int:
    """Makes the trials and writes what came out; returns the exit status."""
    arguments = _arguments()
    torch.set_num_threads(1)  # the run is made in a fork of this process
    budget = Budget(trials=arguments.trials, seconds=None if arguments.minutes is None else arguments.minutes * 60)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="publishing_") as name:
        folder = Path(name)
        run = make_toy_run(folder / "run")
        (folder / "trials").mkdir()
        campaign = Campaign(run, folder / "trials", random.Random(arguments.seed))
        tally = campaign.trials(budget)
    facts = tally.facts
    report: dict[str, Any] = {
        "seed": arguments.seed,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("huggingface_hub", "hf_xet")},
        "transports": [transport.name for transport in TRANSPORTS],
        "claim": CLAIM,
        "trials": tally.trials,
        "failed": len(tally.failures),
        "failures": tally.failures,
        "zeros": {never: f"{zero.found} of {zero.among}" for never, zero in campaign.zeros.items()},
        "branches were read by": campaign.checked_by,
        "faults at kinds of requests, kills at requests: met": len(campaign.met),
        "faults at kinds of requests, kills at requests: there are": len(set(campaign.deck.cards)),
        "first faults": dict(sorted(tally.kinds.items())),
        "facts": facts,
        "seconds": round(time.monotonic() - began, 1),
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{tally.trials} trials, {len(tally.failures)} failed. {CLAIM}.")
    for failure in tally.failures[:3]:
        print(f"  {failure}")
    print(f"{arguments.output} has the counts.")
    return 1 if tally.failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.publishing", description=__doc__)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("publishing.json"))
    arguments = parser.parse_args()
    if arguments.minutes is None and arguments.trials is None:
        parser.error("give --trials, --minutes or both: a campaign must end")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
