"""What somebody should be told of a run, and telling it by a command of theirs."""

import json
import math
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from megatron_poro.cluster.run_status import RunStatus
from megatron_poro.errors import DivergedError
from megatron_poro.logs import get_logger
from megatron_poro.metrics import names
from megatron_poro.units import format_bytes, format_seconds

logger = get_logger(__name__)

NEWEST, BEFORE = 10, 100
"""Steps whose losses are compared: these, with so many before them."""

_NEVER_STARTS = ("BadConstraints", "JobHeldUser", "JobHeldAdmin", "DependencyNeverSatisfied", "PartitionNodeLimit")
_COMMAND_SECONDS = 120


@dataclass(frozen=True)
class Limits:
    """When to speak up.

    Attributes:
        free_bytes: less than this is little disk.
        loss_factor: the loss of the newest steps against that of the steps before.
    """

    free_bytes: int = 0
    loss_factor: float = 1.3


@dataclass(frozen=True)
class Alert:
    """Something that somebody should know.

    Attributes:
        kind: one word for it, the same as long as it lasts.
        text: a sentence.
    """

    kind: str
    text: str


def alerts(status: RunStatus, losses: list[float | None], limits: Limits) -> Iterator[Alert]:
    """What is to be said of a run now.

    Args:
        status: of the run.
        losses: of its newest steps, oldest first; ``None`` where one was not finite.
        limits: when to speak up.
    """
    if status.state == "stalled":
        silent = "never" if status.silent_seconds is None else f"{format_seconds(status.silent_seconds)} ago"
        yield Alert("stall", f"a job runs, but the last line of metrics was written {silent}.")
    if status.state == "needs a person":
        yield Alert("failure", f"no job starts any more: {status.attempts[-1].reason}.")
    if status.state == "no jobs":
        yield Alert("failure", f"step {status.step:,} of {status.last_step:,} is done and no job is in the queue.")
    if status.attempts and status.attempts[-1].code == DivergedError.exit_status:
        yield Alert("divergence", "the run ended because steps could not be taken again and again.")
    elif (text := divergence(losses, limits.loss_factor)) is not None:
        yield Alert("divergence", text)
    running = [job.job for job in status.jobs or () if job.state == "RUNNING"]
    if len(running) > 1:
        yield Alert(
            "duplicate", f"{len(running)} jobs of this run are running: {', '.join(running)}; cancel all but one."
        )
    stuck = [job for job in status.jobs or () if job.reason in _NEVER_STARTS]
    for job in stuck if not running else ():
        yield Alert("stuck", f"job {job.job} does not start: {job.reason}.")
    if status.free_bytes < limits.free_bytes:
        yield Alert(
            "disk", f"{format_bytes(status.free_bytes)} are free, fewer than {format_bytes(limits.free_bytes)}."
        )


def divergence(losses: list[float | None], factor: float) -> str | None:
    """A sentence if the newest losses are not finite, or well above those before them."""
    newest = losses[-NEWEST:]
    if any(loss is None or not math.isfinite(loss) for loss in newest):
        return f"a loss among the last {len(newest)} steps is not finite."
    before = [loss for loss in losses[:-NEWEST] if loss is not None and math.isfinite(loss)]
    if len(before) < NEWEST:
        return None
    now, then = median(loss for loss in newest if loss is not None), median(before)
    return f"the loss rose from {then:.3f} to {now:.3f}." if now > factor * then else None


def newest_losses(metrics: Path) -> list[float | None]:
    """Losses of the newest steps of a run, oldest first."""
    losses: list[float | None] = []
    try:
        with metrics.open("rb") as file:
            lines = list(deque(file, maxlen=NEWEST + BEFORE))
    except OSError:
        return losses
    for line in lines:
        try:
            losses.append(json.loads(line)[names.LOSS.key])
        except (ValueError, KeyError, TypeError):
            continue
    return losses


class Teller:
    """Tells each thing once, and again only after it was over in between.

    Args:
        command: a shell command; PORO_ALERT holds the kind, PORO_MESSAGE the sentence, PORO_RUN the run folder.
        environment: what the command gets besides.
        run: runs a command; for tests.
    """

    def __init__(self, command: str, environment: Mapping[str, str], run: Callable[..., Any] = subprocess.run) -> None:
        self._command = command
        self._environment = environment
        self._run = run
        self._told: set[str] = set()

    def tell(self, status: RunStatus, found: list[Alert]) -> list[Alert]:
        """Tells what is new; returns it."""
        fresh = [alert for alert in found if alert.kind not in self._told]
        self._told = {alert.kind for alert in found}
        for alert in fresh:
            logger.warning("%s: %s: %s", status.run, alert.kind, alert.text)
            variables = {"PORO_ALERT": alert.kind, "PORO_MESSAGE": alert.text, "PORO_RUN": status.run}
            try:
                done = self._run(
                    self._command, shell=True, env={**self._environment, **variables}, check=False,
                    timeout=_COMMAND_SECONDS,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                logger.error("the command did not end within %d s and was killed.", _COMMAND_SECONDS)
                self._told.discard(alert.kind)
                continue
            if done.returncode:
                logger.error("the command ended with %d; it is tried again.", done.returncode)
                self._told.discard(alert.kind)
        return fresh
