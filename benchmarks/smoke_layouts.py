"""The smoke run at 2 x 2 x 2 on eight processes against the same run in one process: both curves and their difference.

Run after ``make smoke``, on whose corpora it trains: ``python -m benchmarks.smoke_layouts``, five minutes on 2 cores.
Ends with status 1 if a step's loss differs by more than the tolerance of docs/numerics.md.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = Path("work/smoke/layouts")
TOLERANCE = 0.002
"""Largest relative difference of one step's loss in bf16."""

COMMON = ["experiment=smoke_cpu", f"run.root={WORK}", "validation.every_steps=0", "checkpoint.every_steps=0"]
RUNS = {
    "one_process": ["-m", "launch.train", *COMMON, "engine=local", "parallel=single"],
    "two_by_two_by_two": [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "8", "-m", "launch.train", *COMMON),
        *("parallel.tensor=2", "parallel.pipeline=2", "parallel.data=2"),
    ],
}


def losses(name: str) -> list[float]:
    """Trains one of the two runs from the start and returns its loss at every step."""
    shutil.rmtree(ROOT / WORK / name, ignore_errors=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    subprocess.run([sys.executable, *RUNS[name], f"run.name={name}"], cwd=ROOT, env=environment, check=True)
    lines = (ROOT / WORK / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def main() -> int:
    """Prints both curves; the status says whether they agree."""
    control, parallel = (losses(name) for name in RUNS)
    worst = 0.0
    print(f"{'step':>5} {'one process':>12} {'2 x 2 x 2':>12} {'relative':>9}")
    for step, (expected, found) in enumerate(zip(control, parallel, strict=True), start=1):
        difference = abs(found - expected) / expected
        worst = max(worst, difference)
        if step % 10 == 0 or step == 1:
            print(f"{step:5} {expected:12.4f} {found:12.4f} {difference:9.1e}")
    print(f"largest relative difference of {len(control)} steps: {worst:.1e}, allowed {TOLERANCE:.0e}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
