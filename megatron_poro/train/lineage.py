"""The history of a run: its id, how often it was rewound, which steps it must not learn from, how far it has saved.

``run.json`` holds it, replaced by a rename whenever it changes. A run has one history: a rewind moves everything after
a step to ``abandoned/<number of the rewind>/`` and overwrites nothing. It begins with a journal, ``rewind.json``, that
lists every move; whoever opens the history next finishes a rewind that was cut short, so that the run is as before or
as after. Needs no torch: ``poro rewind`` runs on a login node.

One process writes; the others keep the same record in memory.
"""

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.locating import CHECKPOINTS_FOLDER
from megatron_poro.checkpoint.state import META_NAME, RunState
from megatron_poro.checkpoint.store import CheckpointStore, sync, write_durably
from megatron_poro.errors import CheckpointError
from megatron_poro.logs import get_logger
from megatron_poro.train.abandoning import ABANDONED_FOLDER, later_than, move_away

RECORD_NAME = "run.json"
JOURNAL_NAME = "rewind.json"

_FORMAT = 1

logger = get_logger(__name__)


@dataclass(frozen=True)
class StepRange:
    """Steps of a run, both ends included; step 1 is the first."""

    first: int
    last: int

    def __contains__(self, step: int) -> bool:
        return self.first <= step <= self.last

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """One rewind of a run.

    Attributes:
        number: 1 for the first. The history after it is lineage ``number``; what it left is in ``abandoned/<number>``.
        left: the last step that had been committed before it.
        to: the step it went back to.
        skip: steps after it that are not learned from, or None.
        reason: why, in words.
        when: UTC, ISO 8601.
    """

    number: int
    left: int
    to: int
    skip: StepRange | None
    reason: str
    when: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What ``run.json`` says.

    Attributes:
        run_id: made once, stays through restarts and rewinds.
        created: UTC, ISO 8601.
        committed_step: the last step that has been saved, 0 before the first.
        skip: steps that are not learned from.
        rewinds: all rewinds, oldest first.
    """

    run_id: str
    created: str
    committed_step: int = 0
    skip: tuple[StepRange, ...] = ()
    rewinds: tuple[Rewind, ...] = ()

    @classmethod
    def new(cls, run_id: str | None = None) -> "RunRecord":
        """The record of a run that has none yet."""
        return cls(run_id=run_id or secrets.token_hex(8), created=_now())

    @property
    def lineage(self) -> int:
        """How often the run has been rewound."""
        return len(self.rewinds)

    def encode(self) -> bytes:
        """The text of ``run.json``."""
        return _encode({"lineage": self.lineage, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """Reads a ``run.json``.

        Raises:
            CheckpointError: if it is damaged, or from a release whose format is newer.
        """
        with _reading(path) as record:
            return cls(
                run_id=str(record["run_id"]),
                created=str(record["created"]),
                committed_step=int(record["committed_step"]),
                skip=tuple(StepRange(**one) for one in record["skip"]),
                rewinds=tuple(_rewind(one) for one in record["rewinds"]),
            )

    def rewound(self, rewind: Rewind) -> "RunRecord":
        """The record after a rewind."""
        return dataclasses.replace(
            self,
            committed_step=rewind.to,
            skip=self.skip if rewind.skip is None else (*self.skip, rewind.skip),
            rewinds=(*self.rewinds, rewind),
        )


def read_record(folder: Path) -> RunRecord | None:
    """The record of a run folder, None if it has none; finishes a rewind that was cut short.

    One process calls it, which holds the folder.

    Raises:
        CheckpointError: if it cannot be read, or the rewind cannot be finished.
    """
    path = folder / RECORD_NAME
    record = RunRecord.read(path) if path.exists() else None
    if (folder / JOURNAL_NAME).exists():
        with _reading(folder / JOURNAL_NAME) as journal:
            rewind, moves = _rewind(journal["rewind"]), [str(name) for name in journal["moves"]]
        if record is None:
            raise CheckpointError(
                f"{folder / JOURNAL_NAME} is there, but {RECORD_NAME} is not: put it back from a copy, or remove both."
            )
        logger.info("finishing the rewind to step %d, which was cut short", rewind.to)
        record = _carry_out(folder, record, rewind, moves)
    return record


def record_of(folder: Path, store: CheckpointStore) -> RunRecord:
    """The record of a run that is about to start, checked against its checkpoints. One process calls it.

    Checkpoints without a record keep the run id that they name, as when ``run.json`` was lost; those that name none (an
    imported model) begin a new run.

    Args:
        folder: of the run, held by this process.
        store: its checkpoints.

    Raises:
        CheckpointError: if steps were saved and no checkpoint is there, or a checkpoint is another run's.
    """
    record = read_record(folder)
    writers = _writers(store)
    if record is None:
        return RunRecord.new(run_id=next(iter(writers.values()), None))
    if record.committed_step > 0 and not store.steps():
        raise CheckpointError(
            f"run {record.run_id} has saved step {record.committed_step}, but {store.folder} holds no checkpoint; it "
            "does not begin again at step 0 by itself. Put the checkpoints back, say so with `poro rewind RUN --to 0`, "
            "or choose another run.name."
        )
    for step, run_id in writers.items():
        if run_id != record.run_id:
            raise CheckpointError(
                f"{store.path(step)} was written by run {run_id}, but {folder / RECORD_NAME} is of run "
                f"{record.run_id}. Move the checkpoint away, or choose another run.name."
            )
    return record


class Lineage:
    """The history of a run that somebody holds. All processes have one and call its methods alike; one of them writes.

    Args:
        folder: the run's folder.
        record: what is in it (:func:`read_record`), or that of a new run; the same on all processes.
        writes: whether this process writes. Methods raise on it alone, so they are called where all processes learn of
            it (``World.together``).
        before_rewind: raises if the run is no longer ours.
    """

    def __init__(
        self, folder: Path, record: RunRecord, *, writes: bool, before_rewind: Callable[[], None] = lambda: None
    ) -> None:
        self.folder = folder
        self.record = record
        self._writes = writes
        self._before_rewind = before_rewind

    @property
    def run_id(self) -> str:
        """Made once, stays through restarts and rewinds."""
        return self.record.run_id

    @property
    def number(self) -> int:
        """How often the run has been rewound."""
        return self.record.lineage

    def is_skipped(self, step: int) -> bool:
        """Whether a step must not be learned from."""
        return any(step in one for one in self.record.skip)

    def write(self) -> None:
        """Puts the record on disk."""
        if self._writes:
            with _written(self.folder / RECORD_NAME):
                write_durably(self.folder / RECORD_NAME, self.record.encode())

    def committed(self, step: int) -> None:
        """Notes that a step has been saved; on a disk that refuses, in memory only, until the next one."""
        self.record = dataclasses.replace(self.record, committed_step=step)
        try:
            self.write()
        except CheckpointError as error:
            logger.warning("%s It still names an older step as the last one saved.", error)

    def rewind(self, to: int, skip: StepRange | None = None, reason: str = "") -> Rewind:
        """Makes a step the last of the run, and what came after it an abandoned branch.

        Nothing may be written to the run's folder meanwhile: no save is in flight and the metrics are flushed. Values
        in memory are the caller's part: the engine is loaded from the step, the metrics are told (``Tracker.rewound``).

        Args:
            to: a step that has a valid checkpoint, or 0, which begins the run again.
            skip: steps after it that are not to be learned from this time, besides those named by earlier rewinds.
            reason: why, in words.

        Raises:
            CheckpointError: if there is no such checkpoint, the range begins before the step, or a file cannot be
                moved; in the last case the rewind is finished by whoever opens the run next.
        """
        _require_after(skip, to)
        record = self.record
        rewind = Rewind(
            number=record.lineage + 1, left=record.committed_step, to=to, skip=skip, reason=reason, when=_now()
        )
        if self._writes:
            self._before_rewind()
            _require_valid(CheckpointStore(self.folder / CHECKPOINTS_FOLDER), to)
            moves = later_than(self.folder, to)
            _require_absent(self.folder / ABANDONED_FOLDER / str(rewind.number))
            with _written(self.folder / JOURNAL_NAME):
                self.write()  # what the journal is carried out on
                journal = _encode({"rewind": dataclasses.asdict(rewind), "moves": moves})
                write_durably(self.folder / JOURNAL_NAME, journal)
            _carry_out(self.folder, record, rewind, moves)
        self.record = record.rewound(rewind)
        return rewind


def _writers(store: CheckpointStore) -> dict[int, str]:
    """The run id that each checkpoint names, newest first; those that name none or cannot be read are left out."""
    found = {}
    for step in store.steps():
        try:
            run_id = RunState.read(store.path(step) / META_NAME).run_id
        except CheckpointError:
            continue  # damaged: told when the run resumes
        if run_id:
            found[step] = run_id
    return found


def _carry_out(folder: Path, record: RunRecord, rewind: Rewind, moves: list[str]) -> RunRecord:
    """Everything after the journal was written; may be repeated."""
    journal = folder / JOURNAL_NAME
    with _written(journal):
        if record.lineage < rewind.number:
            move_away(folder, rewind.to, moves, rewind.number)
            record = record.rewound(rewind)
            write_durably(folder / RECORD_NAME, record.encode())
        journal.unlink(missing_ok=True)
        sync(folder)
    return record


def _require_after(skip: StepRange | None, to: int) -> None:
    if skip is not None and not to < skip.first <= skip.last:
        raise CheckpointError(
            f"steps {skip} cannot be skipped after a rewind to step {to}: give first:last, where first is after {to} "
            "and not after last."
        )


def _require_valid(store: CheckpointStore, step: int) -> None:
    if step == 0:
        return
    if step not in store.steps():
        known = ", ".join(map(str, sorted(store.steps()))) or "none"
        raise CheckpointError(
            f"{store.folder} has no checkpoint of step {step}; it has {known}. Rewind to one, or to 0."
        )
    problems = manifest.problems(store.path(step))
    if problems:
        raise CheckpointError(f"checkpoint {store.path(step)} is damaged ({problems[0]}): rewind to another step.")


def _require_absent(branch: Path) -> None:
    if branch.exists():
        raise CheckpointError(
            f"{branch} exists, though {RECORD_NAME} knows of no such rewind; nothing is overwritten. Move it away."
        )


@contextmanager
def _reading(path: Path) -> Iterator[dict[str, Any]]:
    """The content of one of our JSON files; what is wrong with it becomes one sentence."""
    try:
        record = json.loads(path.read_bytes())
        if record["format"] != _FORMAT:
            raise CheckpointError(f"{path} has format {record['format']!r}, this release reads {_FORMAT}.")
        yield record
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}): put it back from a copy.") from error


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """What the disk refuses becomes one sentence."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path} cannot be written or moved: {error.strerror or error}."
        ) from error


def _rewind(values: dict[str, Any]) -> Rewind:
    skip = values["skip"]
    return Rewind(**{**values, "skip": None if skip is None else StepRange(**skip)})


def _encode(record: dict[str, Any]) -> bytes:
    return (json.dumps({"format": _FORMAT, **record}, indent=1, ensure_ascii=False) + "\n").encode()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
