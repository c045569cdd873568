"""How a run goes on from one job to the next. Every decision is made here, from files; job scripts obey a word.

A run goes on until its last step is saved, unless a person stopped it, its input is at fault, or job after job fails
without a newer checkpoint.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.locating import CHECKPOINTS_FOLDER
from megatron_poro.checkpoint.store import CheckpointStore, step_of, write_durably
from megatron_poro.cluster import ledger
from megatron_poro.cluster.job_folder import JobFolder
from megatron_poro.config.run import TrainConfig
from megatron_poro.errors import DivergedError, PoroError, ReplicaError
from megatron_poro.schedule.plan import plan_run
from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.watchdog import delaying_since

GO, FINISHED, STOPPED, LOOK, CONTINUE, RETRY = "go", "finished", "stopped", "look", "continue", "retry"

PREFLIGHT = "pre-flight"

NEEDS_A_PERSON = (PoroError.exit_status, DivergedError.exit_status, ReplicaError.exit_status)
"""Exit codes after which starting again would come to the same."""

_NOTED_FAILURES = 16

KILLED = tuple(range(128, 160))
"""Exit codes of a command that a signal ended."""


@dataclass(frozen=True)
class _Fault:
    """Who ended an attempt, on which node, and how."""

    who: str
    host: str
    how: str

    @property
    def what(self) -> str:
        """Without the node."""
        return f"{self.who} {self.how}"


@dataclass(frozen=True)
class Failure:
    """A task that ended otherwise than it should.

    Attributes:
        unix_seconds: when.
        host: on which node.
        rank: which one.
        code: its exit code.
    """

    unix_seconds: float
    host: str
    rank: int
    code: int


def saved_step(run: Path) -> int:
    """Step of the newest complete checkpoint; 0 if there is none."""
    store = CheckpointStore(run / CHECKPOINTS_FOLDER)
    newest, _ = store.newest_valid(lambda folder: manifest.problems(folder, checksums=False))
    return 0 if newest is None else step_of(newest) or 0


def last_step(config: TrainConfig, *, world_size: int) -> int:
    """The step at which a run is over."""
    total = plan_run(config, world_size=world_size).total_steps
    return total if config.run.stop_after_steps is None else min(total, config.run.stop_after_steps)


def begin(folder: JobFolder, *, job: str, restart: int, hosts: Sequence[str]) -> str:
    """Whether a job that has just started has anything to do: ``go``, ``finished``, ``stopped`` or ``look``."""
    settings, step = folder.settings(), saved_step(folder.run)
    if step >= last_step(folder.config(), world_size=settings.nodes * settings.tasks_per_node):
        return FINISHED
    if folder.stop_mark.exists():
        return STOPPED
    if ledger.read(folder.ledger).fruitless(step) >= settings.max_fruitless_jobs:
        return LOOK
    ledger.append(folder.ledger, "start", job=job, restart=restart, hosts=list(hosts), step=step)
    return GO


def end(
    folder: JobFolder, *, job: str, restart: int, code: int | None, failures: Sequence[Failure], leaving: str
) -> str:
    """What follows from the end of a job: ``finished``, ``stopped``, ``look`` or ``continue``.

    The node of the task that failed first, or that the others waited for in vain, gets a strike.

    Args:
        folder: the jobs of the run.
        job: Slurm's number.
        restart: how often Slurm had started it before.
        code: exit code of the training command of rank 0; ``None`` if it left none.
        failures: tasks that failed.
        leaving: why the job was told to leave; empty if it was not.
    """
    settings, step = folder.settings(), saved_step(folder.run)
    history = ledger.read(folder.ledger)
    attempt = next((one for one in history.attempts if (one.job, one.restart) == (job, restart)), None)
    fault = None if leaving or attempt is None else _fault(folder, attempt, failures)
    verdict = CONTINUE
    if step >= last_step(folder.config(), world_size=settings.nodes * settings.tasks_per_node):
        verdict = FINISHED
    elif folder.stop_mark.exists() or code == ExitCode.FINISHED:  # the control file `stop` ends with 0, too
        verdict = STOPPED
    elif leaving == f"{PREFLIGHT}: {LOOK}" or {code, *(failure.code for failure in failures)} & set(NEEDS_A_PERSON):
        verdict = LOOK
    elif fault is not None:
        strike(folder, fault.host, f"{fault.what} in job {job}", job=job, restart=restart)
    if attempt is not None:
        attempt.leaving = leaving
    if verdict == CONTINUE and history.fruitless(step) >= settings.max_fruitless_jobs:
        verdict = LOOK
    ledger.append(
        folder.ledger,
        "end",
        job=job,
        restart=restart,
        step=step,
        code=code,
        leaving=leaving,
        failures=[vars(failure) for failure in sorted(failures, key=lambda one: one.unix_seconds)[:_NOTED_FAILURES]],
        verdict=verdict,
        reason=_reason(code, fault, leaving),
    )
    return verdict


def strike(folder: JobFolder, host: str, why: str, *, job: str, restart: int) -> None:
    """Notes that a node was at fault, and keeps nodes that were so twice from the next jobs."""
    ledger.append(folder.ledger, "strike", job=job, restart=restart, host=host, why=why)
    write_excluded(folder)


def write_excluded(folder: JobFolder) -> None:
    """Writes the nodes that a job must not get."""
    excluded = ledger.read(folder.ledger).excluded(folder.settings().nodes)
    write_durably(folder.exclude, ",".join(excluded).encode())


def read_failures(path: Path) -> list[Failure]:
    """What the tasks of a step noted: a line ``<unix seconds> <host> <rank> <code>`` each."""
    failures = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        words = line.split()
        if len(words) == 4:
            failures.append(Failure(float(words[0].replace(",", ".")), words[1], int(words[2]), int(words[3])))
    return failures


def _first(failures: Sequence[Failure]) -> Failure | None:
    """The task that failed first, and not because it was told to leave or missed another."""
    effects = (*NEEDS_A_PERSON, ExitCode.LOST_PEER, ExitCode.IN_USE, 128 + signal.SIGTERM, 128 + signal.SIGUSR1)
    own = [failure for failure in failures if failure.code not in effects]
    return min(own, key=lambda failure: failure.unix_seconds, default=None)


def _fault(folder: JobFolder, attempt: ledger.Attempt, failures: Sequence[Failure]) -> _Fault | None:
    """What ended an attempt, if it was one node's doing.

    Once a process has found the run hung, all others are ended, one way or another: how they failed says nothing then.
    """
    if any(failure.code == ExitCode.HUNG for failure in failures):
        ranks = delaying_since(folder.run, attempt.started)
        per_node = folder.settings().tasks_per_node  # srun lays them out in blocks
        hosts = {attempt.hosts[rank // per_node] for rank in ranks if rank // per_node < len(attempt.hosts)}
        return _Fault(f"rank {ranks[0]}", hosts.pop(), "did not get on") if len(hosts) == 1 else None
    first = _first(failures)
    if first is None:
        return None
    how = f"was ended by signal {first.code - 128}" if first.code in KILLED else f"ended with {first.code}"
    return _Fault(f"rank {first.rank}", first.host, how)


def _reason(code: int | None, fault: _Fault | None, leaving: str) -> str:
    """Why an attempt ended, in some words."""
    if fault is not None:
        return f"{fault.who} on {fault.host} {fault.how}"
    if leaving.startswith(PREFLIGHT):
        return "the pre-flight found a fault; nothing was started"
    told = {"time limit": "time limit", "cancelled": "cancelled or requeued"}.get(leaving, "")
    match code:
        case ExitCode.FINISHED:
            return "ended as it should"
        case ExitCode.IN_USE:
            return "another job had the run"
        case ExitCode.STOPPED:
            return f"{told or 'asked to stop'}; saved"
        case None:
            return f"{told}; not saved" if told else "ended without a word"
        case _:
            return f"{told}; ended with {code}" if told else f"ended with {code}"
