"""What Slurm is asked and told, by its own commands. They are nowhere else in the package."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_poro.errors import ConfigError

_COLUMNS = ("job", "state", "reason", "elapsed", "left", "nodes", "hosts")
_FORMAT = "%A|%T|%r|%M|%L|%D|%N"


@dataclass(frozen=True)
class QueuedJob:
    """A job that Slurm has not forgotten: pending, running or ending.

    Attributes:
        job: its number.
        state: ``PENDING``, ``RUNNING``, ``COMPLETING``, ...
        reason: why it is pending, such as ``Dependency`` or ``JobHeldUser``.
        elapsed: time it has run, as Slurm writes it.
        left: time until its limit, likewise.
        nodes: how many it has or wants.
        hosts: which; empty while it waits.
    """

    job: str
    state: str
    reason: str
    elapsed: str
    left: str
    nodes: str
    hosts: str

    @property
    def is_running(self) -> bool:
        """Whether it has nodes."""
        return self.state in ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED")


def is_here() -> bool:
    """Whether this machine has Slurm's commands; in most containers they are not."""
    return shutil.which("squeue") is not None and shutil.which("sbatch") is not None


def jobs_called(name: str) -> list[QueuedJob]:
    """This user's jobs of a name, running ones first.

    Raises:
        ConfigError: if Slurm does not answer.
    """
    lines = _run("squeue", "--me", "--noheader", f"--name={name}", f"--format={_FORMAT}").splitlines()
    jobs = [QueuedJob(**dict(zip(_COLUMNS, line.split("|"), strict=True))) for line in lines if line.strip()]
    return sorted(jobs, key=lambda job: (not job.is_running, int(job.job)))


def submit(script: Path, *, excluded: Sequence[str] = (), singleton: bool = False) -> str:
    """Submits a job script; returns the number of the job.

    Raises:
        ConfigError: with Slurm's own words if it refuses.
    """
    options = [f"--exclude={','.join(excluded)}"] if excluded else []
    options += ["--dependency=singleton"] if singleton else []
    return _run("sbatch", "--parsable", *options, str(script)).strip().partition(";")[0]


def would_start(script: Path) -> str:
    """What Slurm says of when a job would start, without submitting it.

    Raises:
        ConfigError: with Slurm's own words if it would refuse.
    """
    return _run("sbatch", "--test-only", str(script), with_errors=True).strip()


def cancel(jobs: Sequence[str]) -> None:
    """Takes jobs out of the queue, or ends them."""
    if jobs:
        _run("scancel", *jobs)


def tell_to_save(job: str) -> None:
    """Sends a running job the signal that Slurm sends before the time limit."""
    _run("scancel", "--batch", "--signal=USR1", job)


def _run(*command: str, with_errors: bool = False) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        raise ConfigError(f"{command[0]} is not on PATH; run this where Slurm's commands are.") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{command[0]} has not answered for two minutes; try again later.") from None
    if done.returncode:
        raise ConfigError(f"{command[0]} failed: {' '.join(done.stderr.split()) or f'status {done.returncode}'}")
    return done.stdout + (done.stderr if with_errors else "")
