"""``poro status``: how a run on a cluster is doing."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_poro.cluster.job_folder import JobFolder
from megatron_poro.cluster.run_status import describe, status_of

STALLED_SECONDS = 1800.0


def main(argv: Sequence[str]) -> int:
    """Runs ``poro status``; returns the exit status."""
    arguments = _parser().parse_args(argv)
    status = status_of(JobFolder.at(arguments.run), stalled_seconds=arguments.stalled_seconds)
    print(status.to_json() if arguments.json else describe(status))
    return 0


def add_stalled_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says how long a run may be silent."""
    parser.add_argument(
        "--stalled-seconds",
        type=float,
        default=STALLED_SECONDS,
        metavar="S",
        help="a running job that has written no metrics for so long has stalled (1800)",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poro status", description="How a run on a cluster is doing.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that was submitted")
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    add_stalled_argument(parser)
    return parser
