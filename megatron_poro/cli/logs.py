"""``poro logs``: what the jobs of a run print."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_poro.cluster.job_folder import JobFolder
from megatron_poro.errors import ConfigError

_LOOK_EVERY_SECONDS = 1.0


def main(argv: Sequence[str]) -> int:
    """Runs ``poro logs``; returns the exit status."""
    arguments = _parser().parse_args(argv)
    path = _log(JobFolder.at(arguments.run), arguments.job)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    print("\n".join(lines if arguments.lines == 0 else lines[-arguments.lines :]))
    if arguments.follow:
        _follow(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poro logs", description="What the newest job of a run has printed.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that was submitted")
    parser.add_argument("--job", metavar="NUMBER", help="another job")
    parser.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="so many lines; 0 for all (50)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on printing, until Ctrl-C")
    return parser


def _log(folder: JobFolder, job: str | None) -> Path:
    logs = sorted(folder.logs.glob("*.out"), key=lambda path: path.stat().st_mtime)
    if job is not None:
        logs = [path for path in logs if path.stem == job]
    if not logs:
        raise ConfigError(f"{folder.logs} has no output of {f'job {job}' if job else 'any job'} yet.")
    return logs[-1]


def _follow(path: Path) -> None:
    with path.open(encoding="utf-8", errors="replace") as file:
        file.seek(0, 2)
        while True:
            print(file.read(), end="", flush=True)
            time.sleep(_LOOK_EVERY_SECONDS)
