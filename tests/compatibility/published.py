"""Are published branches the same to transformers 5 and 4.57? Run as ``python -m tests.compatibility.published``.

Trains and exports a small run, publishes it to a hub on this machine, and lets a fresh interpreter of each environment
read every branch with an empty cache: every bit, token and setting must be that of the export. Makes the second
environment itself; status 1 if anything differs.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.compatibility.environment import RELEASE, interpreter
from tests.integration.publishing import environment, poro, read_branches
from tests.integration.toy import ToyCorpora
from tests.support.hub.server import Hub

REPOSITORY = "poro/toy"
LABELS = ("256", "512", "768")


def main() -> int:
    """Prints a line for each environment; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default=RELEASE, help=f"of transformers to compare with (default: {RELEASE})")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="where it is, or is made")
    arguments = parser.parse_args()
    other = interpreter(arguments.environment, release=arguments.release)
    with tempfile.TemporaryDirectory() as name, Hub(Path(name) / "hub") as hub:
        folder = Path(name)
        run = _published(hub, folder)
        exports = {label: run / "exports" / label for label in LABELS} | {"main": run / "exports" / LABELS[-1]}
        read = [
            read_branches(hub, REPOSITORY, exports, folder / f"reader_{number}", python=python)
            for number, python in enumerate((Path(sys.executable), other))
        ]
    for python, branches in zip((sys.executable, other), read, strict=True):
        bits = (f"{branch} {str(numbers['bits'])[:12]}" for branch, numbers in branches.items())
        print(f"{python}: {', '.join(bits)}")
    print("the same bits" if read[0] == read[1] else "DIFFERENT")
    return 0 if read[0] == read[1] else 1


def _published(hub: Hub, folder: Path) -> Path:
    words = ToyCorpora.make(folder / "corpora").arguments(
        folder, "schedule.total_tokens=768", "export.every_tokens=256"
    )
    run = folder / "toy"
    for command in (
        ["train", *words],
        ["export", str(run), "--milestones", "--max-shard-bytes", "60k"],
        ["publish", str(run), "--repo", REPOSITORY],
    ):
        done = poro(command, environment(hub, folder / "home") if command[0] == "publish" else os.environ)
        assert done.status == 0, done.complaints
    return run


if __name__ == "__main__":
    sys.exit(main())
