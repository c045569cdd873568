"""How a run on a cluster is doing: from its own files, and from Slurm where it can be asked."""

import json
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from megatron_poro.cluster import slurm
from megatron_poro.cluster.chain import last_step, saved_step
from megatron_poro.cluster.estimate import measured_speed
from megatron_poro.cluster.job_folder import JobFolder
from megatron_poro.cluster.ledger import Attempt, read
from megatron_poro.cluster.slurm import QueuedJob
from megatron_poro.metrics import names
from megatron_poro.schedule.plan import plan_run
from megatron_poro.units import format_bytes, format_seconds

_TAIL_BYTES = 65536


@dataclass(frozen=True)
class RunStatus:
    """What is known of a run.

    Attributes:
        run: its folder.
        state: ``finished``, ``stopped``, ``training``, ``starting``, ``stalled``, ``waiting``, ``needs a person`` or
            ``no jobs``.
        step: last step in the metrics.
        last_step: step at which the run is over.
        tokens: tokens consumed.
        total_tokens: tokens of all steps.
        loss: of that step.
        tokens_per_second: median of the newest steps.
        seconds_left: at that speed; ``None`` if it is not known.
        silent_seconds: since the last line of metrics.
        checkpoint_step: step of the newest complete checkpoint; 0 if there is none.
        free_bytes: on the file system of the run.
        jobs: in Slurm's queue; ``None`` if Slurm could not be asked.
        attempts: starts of jobs, oldest first.
        excluded: nodes that failed twice.
        strikes: nodes with their strikes.
    """

    run: str
    state: str
    step: int
    last_step: int
    tokens: int
    total_tokens: int
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    silent_seconds: float | None
    checkpoint_step: int
    free_bytes: int
    jobs: list[QueuedJob] | None
    attempts: list[Attempt]
    excluded: list[str]
    strikes: dict[str, list[str]]

    def to_json(self) -> str:
        """Everything, as one JSON object."""
        return json.dumps(asdict(self), indent=1)


def status_of(folder: JobFolder, *, stalled_seconds: float) -> RunStatus:
    """Looks at a run.

    Args:
        folder: its jobs.
        stalled_seconds: a running job that has written no metrics for so long has stalled.

    Raises:
        ConfigError: if what was submitted cannot be read.
    """
    settings, config = folder.settings(), folder.config()
    world_size = settings.nodes * settings.tasks_per_node
    plan, over = plan_run(config, world_size=world_size), last_step(config, world_size=world_size)
    line = _last_line(folder.run / "metrics.jsonl")
    speed = measured_speed(folder.run / "metrics.jsonl")
    step = int(line.get(names.STEP.key, 0))
    written = line.get(names.UNIX_SECONDS.key)
    saved, history = saved_step(folder.run), read(folder.ledger)
    jobs = slurm.jobs_called(settings.name) if slurm.is_here() else None
    silent = None if written is None else time.time() - float(written)
    return RunStatus(
        run=str(folder.run),
        state=_state(folder, saved >= over, history.attempts, jobs, silent, stalled_seconds),
        step=step,
        last_step=over,
        tokens=int(line.get(names.TOKENS.key, 0)),
        total_tokens=plan.after(over).tokens,
        loss=line.get(names.LOSS.key),
        tokens_per_second=None if speed is None else speed.tokens_per_second,
        seconds_left=None if speed is None else (over - step) * plan.tokens_per_step / speed.tokens_per_second,
        silent_seconds=silent,
        checkpoint_step=saved,
        free_bytes=shutil.disk_usage(folder.run).free,
        jobs=jobs,
        attempts=history.attempts,
        excluded=history.excluded(settings.nodes),
        strikes=history.strikes,
    )


def describe(status: RunStatus) -> str:
    """A status as text for people."""
    rows = [
        ("run", status.run),
        ("state", status.state),
        ("step", f"{status.step:,} of {status.last_step:,} ({status.step / max(1, status.last_step):.1%})"),
        ("tokens", f"{status.tokens:,} of {status.total_tokens:,}"),
        ("loss", "none yet" if status.loss is None else f"{status.loss:.4f}"),
        ("speed", _speed(status)),
        ("last line", "none" if status.silent_seconds is None else f"{format_seconds(status.silent_seconds)} ago"),
        ("checkpoint", f"step {status.checkpoint_step:,}" if status.checkpoint_step else "none"),
        ("disk", f"{format_bytes(status.free_bytes)} free"),
        *_job_rows(status),
        *_attempt_rows(status),
        *(
            ("node", f"{host}: {len(reasons)} strikes{' (excluded)' * (host in status.excluded)}: {reasons[-1]}")
            for host, reasons in status.strikes.items()
        ),
    ]
    return "\n".join(f"{key:<11} {text}" for key, text in rows)


def _state(
    folder: JobFolder,
    is_over: bool,
    attempts: list[Attempt],
    jobs: list[QueuedJob] | None,
    silent: float | None,
    stalled_seconds: float,
) -> str:
    newest = attempts[-1] if attempts else None
    is_running = any(job.is_running for job in jobs) if jobs is not None else _seems_to_run(newest, silent)
    if is_running:
        started = newest.started if newest else time.time()
        quiet = min(time.time() - started, time.time() if silent is None else silent)
        if quiet > stalled_seconds:
            return "stalled"
        return "training" if silent is not None and silent < time.time() - started else "starting"
    if is_over:
        return "finished"
    if folder.stop_mark.exists():
        return "stopped"
    if jobs:
        return "waiting"
    if newest is not None and newest.verdict == "look":
        return "needs a person"
    return "no jobs" if jobs is not None else "unknown: Slurm's commands are not here"


def _seems_to_run(newest: Attempt | None, silent: float | None) -> bool:
    """Without Slurm: a job that has started, has not ended and speaks."""
    return newest is not None and newest.ended is None and silent is not None and silent < 600


def _speed(status: RunStatus) -> str:
    if status.tokens_per_second is None:
        return "not measured yet"
    left = f", {format_seconds(status.seconds_left)} left" if status.seconds_left else ""
    return f"{status.tokens_per_second:,.0f} tokens/s{left}"


def _job_rows(status: RunStatus) -> list[tuple[str, str]]:
    if status.jobs is None:
        return [("jobs", "Slurm's commands are not here")]
    return [
        (
            "job",
            f"{job.job} {job.state.lower()} on {job.hosts}, {job.elapsed} so far, {job.left} left"
            if job.is_running
            else f"{job.job} {job.state.lower()} ({job.reason})",
        )
        for job in status.jobs
    ] or [("jobs", "none in the queue")]


def _attempt_rows(status: RunStatus) -> list[tuple[str, str]]:
    """How each start of a job ended; the newest ten."""
    rows = []
    queued = {job.job for job in status.jobs or () if job.is_running}
    for number, attempt in enumerate(status.attempts):
        if number < len(status.attempts) - 10:
            continue
        is_last = number == len(status.attempts) - 1
        if attempt.ended is None:
            what = (
                "running" if is_last and attempt.job in queued else "ended without a word: killed, or its node was lost"
            )
        else:
            what = f"{format_seconds(attempt.ended - attempt.started)}, step {attempt.end_step:,}: {attempt.reason}"
        started = datetime.fromtimestamp(attempt.started, tz=timezone.utc).strftime("%Y-%m-%d %H:%M")
        rows.append(("start", f"{started} job {attempt.job}.{attempt.restart} at step {attempt.start_step:,}; {what}"))
    return rows


def _last_line(metrics: Path) -> dict[str, Any]:
    """The newest whole line of metrics; empty if there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if line.endswith(b"\n") and isinstance(values, dict):
            return values
    return {}
