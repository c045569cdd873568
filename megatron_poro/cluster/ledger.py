"""What became of the jobs of a run: one line for each start, end and strike, appended and never changed.

A start without an end is a job that was killed: by its time limit, with its node, by a person.
"""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STRIKES_OUT = 2
"""So many strikes keep a node from the next job."""


@dataclass
class Attempt:
    """One start of a job.

    Attributes:
        job: Slurm's number.
        restart: how often Slurm had started this job before.
        hosts: its nodes.
        started: when, in seconds since 1970.
        start_step: step of the newest checkpoint then.
        ended: when; ``None`` if nobody noted an end.
        end_step: step of the newest checkpoint then.
        code: exit code of the training command; ``None`` if it left none.
        leaving: why it was told to leave: ``time limit``, ``cancelled`` or nothing.
        verdict: what was decided: ``continue``, ``finished``, ``stopped`` or ``look``.
        reason: why it ended, for people.
    """

    job: str
    restart: int
    hosts: list[str] = field(default_factory=list)
    started: float = 0.0
    start_step: int = 0
    ended: float | None = None
    end_step: int | None = None
    code: int | None = None
    leaving: str = ""
    verdict: str = ""
    reason: str = ""


@dataclass(frozen=True)
class History:
    """The ledger, read.

    Attributes:
        attempts: starts of jobs, oldest first.
        strikes: why each node was given its strikes.
        resumed: number of attempts that a person had seen when the run was last told to go on.
    """

    attempts: list[Attempt]
    strikes: dict[str, list[str]]
    resumed: int = 0

    def excluded(self, nodes: int) -> list[str]:
        """Nodes that a job must not get: the first ones that had two strikes, and no more than an eighth of a job's.

        Where more seem to be at fault, it is not the nodes.

        Args:
            nodes: nodes of a job.
        """
        struck_out = [host for host, reasons in self.strikes.items() if len(reasons) >= STRIKES_OUT]
        return sorted(struck_out[: max(1, nodes // 8)])

    def fruitless(self, step: int) -> int:
        """Failed attempts in a row that brought no newer checkpoint, newest first.

        An attempt that Slurm started again by itself does not count: it was lost with a node, or taken back.

        Args:
            step: step of the newest checkpoint now.
        """
        count, later_step, later = 0, step, None
        for attempt in reversed(self.attempts[self.resumed :]):
            if later_step > attempt.start_step:
                break
            was_requeued = later is not None and (later.job, later.restart) == (attempt.job, attempt.restart + 1)
            if not was_requeued and attempt.leaving != "cancelled":
                count += 1
            later_step, later = attempt.start_step, attempt
        return count


def append(ledger: Path, event: str, **values: Any) -> None:
    """Adds a line and makes it durable."""
    line = json.dumps({"event": event, "unix_seconds": time.time(), **values})
    with ledger.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(ledger: Path) -> History:
    """Reads a ledger; a line that a crash cut in half is passed over."""
    try:
        lines = ledger.read_bytes().splitlines()
    except FileNotFoundError:
        lines = []
    return _history(_records(lines))


def _records(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def _history(records: Iterable[dict[str, Any]]) -> History:
    attempts: dict[tuple[str, int], Attempt] = {}
    strikes: dict[str, list[str]] = {}
    resumed = 0
    for record in records:
        key = (str(record.get("job")), int(record.get("restart") or 0))
        match record["event"]:
            case "start":
                attempts[key] = Attempt(
                    *key, hosts=record["hosts"], started=record["unix_seconds"], start_step=record["step"]
                )
            case "end" if key in attempts:
                attempt = attempts[key]
                attempt.ended, attempt.end_step = record["unix_seconds"], record["step"]
                attempt.code, attempt.leaving = record["code"], record["leaving"]
                attempt.verdict, attempt.reason = record["verdict"], record["reason"]
            case "strike":
                strikes.setdefault(record["host"], []).append(record["why"])
            case "resume":
                resumed = len(attempts)
                if record.get("forgive"):
                    strikes.clear()
    return History(list(attempts.values()), strikes, resumed)
