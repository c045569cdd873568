"""``poro job``: what job scripts ask. People need `poro status`, `poro stop` and `poro resume`.

The answer is a word in the file ``verdict`` of the attempt's folder, not on stdout: what a container or a login shell
prints there is nobody's business.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_poro import logs
from megatron_poro.cluster import chain
from megatron_poro.cluster.job_folder import JobFolder

_log = logs.get_logger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs ``poro job begin | preflight | inspect | end``; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logs.configure()
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poro job", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="begin | preflight | inspect | end")
    begin = verbs.add_parser("begin", help="is there anything to do?")
    begin.add_argument("--hosts", required=True, metavar="NAME,NAME", help="nodes of the job")
    begin.add_argument("--job", required=True, help="number of the job")
    begin.add_argument("--restart", required=True, type=int, help="how often Slurm has started it before")
    begin.set_defaults(run=_begin)
    preflight = verbs.add_parser("preflight", help="look at this node; run by every task")
    preflight.set_defaults(run=_preflight)
    inspect = verbs.add_parser("inspect", help="read what the tasks found")
    inspect.set_defaults(run=_inspect)
    end = verbs.add_parser("end", help="what follows from how the job ended?")
    end.add_argument("--status", required=True, type=int, help="exit status of srun")
    end.add_argument("--leaving", default="", help="why the job was told to leave")
    end.set_defaults(run=_end)
    for verb in (begin, preflight, inspect, end):
        verb.add_argument("--attempt", required=True, type=Path, metavar="DIR", help="folder of this start of the job")
    return parser


def _begin(arguments: argparse.Namespace) -> int:
    folder = JobFolder.at(arguments.attempt.parent.parent)
    hosts = arguments.hosts.split(",")
    return _answer(arguments, chain.begin(folder, job=arguments.job, restart=arguments.restart, hosts=hosts))


def _preflight(arguments: argparse.Namespace) -> int:
    from megatron_poro.cluster.preflight import look  # torch, unless only nodes are looked at

    settings = JobFolder.at(arguments.attempt.parent.parent).settings()
    return look(arguments.attempt, settings, os.environ)


def _inspect(arguments: argparse.Namespace) -> int:
    from megatron_poro.cluster.preflight_report import judge

    folder = JobFolder.at(arguments.attempt.parent.parent)
    job, restart = _number(arguments.attempt)
    return _answer(arguments, judge(folder, arguments.attempt, job=job, restart=restart))


def _end(arguments: argparse.Namespace) -> int:
    folder = JobFolder.at(arguments.attempt.parent.parent)
    job, restart = _number(arguments.attempt)
    note = arguments.attempt / "train.code"
    verdict = chain.end(
        folder,
        job=job,
        restart=restart,
        code=int(note.read_text()) if note.exists() else None,
        failures=chain.read_failures(arguments.attempt / "train.failures"),
        leaving=arguments.leaving,
    )
    return _answer(arguments, verdict)


def _number(attempt: Path) -> tuple[str, int]:
    """Job and restart, from the name of an attempt's folder."""
    job, _, restart = attempt.name.partition(".")
    return job, int(restart)


def _answer(arguments: argparse.Namespace, verdict: str) -> int:
    (arguments.attempt / "verdict").write_text(f"{verdict}\n")
    return 0
