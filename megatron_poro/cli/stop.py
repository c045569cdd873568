"""``poro stop``: save, end the job, and let no other one start."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_poro.cluster import slurm
from megatron_poro.cluster.job_folder import JobFolder


def main(argv: Sequence[str]) -> int:
    """Runs ``poro stop``; returns the exit status."""
    arguments = _parser().parse_args(argv)
    folder = JobFolder.at(arguments.run)
    folder.stop_mark.touch()  # first: a job that starts in this moment sees it
    if not slurm.is_here():
        print(f"no job will start. Slurm's commands are not here; to end one that runs: touch {_control(folder)}")
        return 0
    jobs = slurm.jobs_called(folder.settings().name)
    slurm.cancel([job.job for job in jobs if not job.is_running])
    running = [job.job for job in jobs if job.is_running]
    for job in running:
        slurm.tell_to_save(job)
    print(f"job {', '.join(running)} is told to save and leave" if running else "no job is running")
    return 0


def _control(folder: JobFolder) -> Path:
    """The control file that a training command looks for."""
    return folder.run / "control" / "stop"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poro stop", description="Save and end a run on a cluster.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that was submitted")
    return parser
