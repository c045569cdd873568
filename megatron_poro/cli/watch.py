"""``poro watch``: call a command when a run on a cluster needs somebody."""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_poro import logs
from megatron_poro.cli.status import add_stalled_argument
from megatron_poro.cluster.job_folder import JobFolder
from megatron_poro.cluster.run_status import RunStatus, status_of
from megatron_poro.cluster.watching import Limits, Teller, alerts, newest_losses
from megatron_poro.errors import ConfigError
from megatron_poro.units import parse_count

ALERT_STATUS = 1
_OVER = ("finished", "stopped")
_log = logs.get_logger(__name__)

_NOTES = """\
The command is a shell's and finds what to say in PORO_ALERT (stall, divergence, duplicate, disk, stuck, failure),
PORO_MESSAGE and PORO_RUN. Each thing is told once as long as it lasts; a command that fails is tried again.

  poro watch runs/mine --command 'mail -s "$PORO_RUN: $PORO_ALERT" me@example.org <<< "$PORO_MESSAGE"'
  poro watch runs/mine --command 'curl -s -d "text=$PORO_ALERT: $PORO_MESSAGE" "$WEBHOOK"' --free 10T
"""


def main(argv: Sequence[str]) -> int:
    """Runs ``poro watch`` until the run is over; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logs.configure()
    folder = JobFolder.at(arguments.run)
    try:
        limits = Limits(free_bytes=parse_count(arguments.free), loss_factor=arguments.loss_factor)
    except ValueError as error:
        raise ConfigError(f"--free {error}.") from None
    teller = Teller(arguments.command, os.environ)
    while True:
        try:
            status = status_of(folder, stalled_seconds=arguments.stalled_seconds)
        except ConfigError as error:  # Slurm does not answer for a while; the run does not care
            if arguments.once:
                raise
            _log.warning("%s", error)
        else:
            found = _look(folder, status, limits, teller)
            if arguments.once:
                return ALERT_STATUS if found else 0
            if status.state in _OVER:
                _log.info("%s: %s at step %d.", status.run, status.state, status.step)
                return 0
        time.sleep(arguments.every)


def _look(folder: JobFolder, status: RunStatus, limits: Limits, teller: Teller) -> bool:
    found = list(alerts(status, newest_losses(folder.run / "metrics.jsonl"), limits))
    teller.tell(status, found)
    return bool(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro watch",
        description="Call a command when a run on a cluster needs somebody; ends when the run does.",
        epilog=_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that was submitted")
    parser.add_argument("--command", required=True, metavar="SHELL", help="what tells somebody")
    parser.add_argument("--every", type=float, default=60.0, metavar="S", help="look every so many seconds (60)")
    parser.add_argument("--free", default="0", metavar="BYTES", help="less free disk than this is told, such as 10T")
    parser.add_argument(
        "--loss-factor", type=float, default=1.3, metavar="X", help="a loss so many times the one before is told (1.3)"
    )
    parser.add_argument("--once", action="store_true", help="look once; status 1 if there is something to tell")
    add_stalled_argument(parser)
    return parser
