"""Where lines of metrics go: a file that is the truth, and the console.

``metrics.jsonl`` holds one JSON object per line and reads as one clean run: on resume, lines after the resumed step
and a line that a crash cut in half are removed. A write that fails (a full disk) is repeated with the next line, so
a run does not end because its log could not be written for a while.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from megatron_poro.logs import get_logger
from megatron_poro.metrics import names
from megatron_poro.units import format_seconds

_log = get_logger(__name__)

Number = int | float

METRICS_NAME = "metrics.jsonl"
"""Name of the file in a run's folder."""

_SYNC_EVERY_SECONDS = 5.0


class Sink(Protocol):
    """Takes lines of metrics."""

    def write(self, step: int, tokens: int, metrics: Mapping[str, Number]) -> None:
        """Takes the line of a step; must not raise for trouble of its own and must not hold training up."""
        ...

    def rewound(self, step: int, lineage: int) -> None:
        """The run has gone back to ``step``: what comes now continues from there, as another lineage of the run."""
        ...

    def close(self) -> None:
        """Writes what is still held."""
        ...


class JsonLinesSink:
    """Appends to a JSON Lines file.

    Every line is handed to the operating system at once, and forced to disk at most every few seconds.

    Args:
        path: the file; made if it does not exist.
        resumed_step: lines of later steps are removed (0 for a new run).
        clock: monotonic seconds.
    """

    def __init__(self, path: Path, resumed_step: int, clock: Callable[[], float] = time.monotonic) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._unwritten: list[bytes] = []
        self._clock = clock
        self._synced_at = clock()
        self._open(resumed_step)

    def write(self, step: int, tokens: int, metrics: Mapping[str, Number]) -> None:
        self._unwritten.append(_to_line(metrics))
        try:
            self._drain()
            if self._clock() - self._synced_at >= _SYNC_EVERY_SECONDS:
                self._sync()
        except OSError as error:
            _log.warning(f"metrics of step {step} could not be written to {self._path} ({error}); trying again later.")

    def rewound(self, step: int, lineage: int) -> None:
        self.close()
        self._unwritten.clear()
        self._open(step)

    def close(self) -> None:
        try:
            self._drain()
            self._sync()
        except OSError as error:
            _log.warning(f"{len(self._unwritten)} lines of metrics could not be written to {self._path} ({error}).")
        os.close(self._file)

    def _open(self, step: int) -> None:
        keep_lines_up_to(self._path, step)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = os.fstat(self._file).st_size

    def _drain(self) -> None:
        """Appends all lines held; after a failure the file ends where it ended before."""
        data = b"".join(self._unwritten)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)
        self._unwritten.clear()

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced_at = self._clock()


def keep_lines_up_to(path: Path, step: int) -> None:
    """Removes lines of later steps and damaged lines from a metrics file; writes nothing if there are none."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if (at := _step_of(line)) is not None and at <= step]
    if len(kept) == len(lines):
        return
    _replace(path, kept)
    _log.info(f"{path}: {len(lines) - len(kept)} lines after step {step} removed; the run continues from there.")


def split_metrics(path: Path, tail: Path, step: int) -> None:
    """Moves the lines of later steps to a file of their own; may be repeated after an interruption at any point."""
    if not path.exists():
        return
    if not tail.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        _replace(tail, [line for line in lines if (_step_of(line) or 0) > step])
    keep_lines_up_to(path, step)


def _replace(path: Path, lines: Sequence[bytes]) -> None:
    """Gives a file new lines by a rename, durably."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _step_of(line: bytes) -> int | None:
    """The step of a line, or ``None`` if the line is damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        step = json.loads(line)[names.STEP.key]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def _to_line(metrics: Mapping[str, Number]) -> bytes:
    """One JSON object; a value that JSON cannot hold (nan, inf) becomes null."""
    finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
    return (json.dumps(finite, allow_nan=False) + "\n").encode()


def console_sink(total_steps: int, stream: TextIO = sys.stdout) -> Sink:
    """A progress bar on a terminal, plain lines anywhere else."""
    return ProgressSink(total_steps, stream) if stream.isatty() else PlainSink(total_steps, stream)


class PlainSink:
    """One readable text line per line of metrics."""

    def __init__(self, total_steps: int, stream: TextIO) -> None:
        self._total_steps = total_steps
        self._stream = stream

    def write(self, step: int, tokens: int, metrics: Mapping[str, Number]) -> None:
        width = len(str(self._total_steps))
        print(
            f"step {step:>{width}}/{self._total_steps}  {summary(metrics, self._total_steps - step)}",
            file=self._stream,
            flush=True,
        )

    def rewound(self, step: int, lineage: int) -> None:
        print(f"back to step {step}", file=self._stream, flush=True)

    def close(self) -> None:
        self._stream.flush()


class ProgressSink:
    """A bar that fills up, with the newest numbers behind it."""

    def __init__(self, total_steps: int, stream: TextIO) -> None:
        self._total_steps = total_steps
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[summary]}"),
            console=Console(file=stream),
            auto_refresh=False,
        )
        self._task: TaskID = self._progress.add_task("train", total=total_steps, summary="")
        self._progress.start()

    def write(self, step: int, tokens: int, metrics: Mapping[str, Number]) -> None:
        text = summary(metrics, self._total_steps - step)
        self._progress.update(self._task, completed=step, summary=text, refresh=True)

    def rewound(self, step: int, lineage: int) -> None:
        self._progress.update(self._task, completed=step, summary="", refresh=True)

    def close(self) -> None:
        self._progress.stop()


def summary(metrics: Mapping[str, Number], steps_left: int) -> str:
    """The numbers a person watches, in one short text; those that are missing are left out."""
    parts = [
        _part(metrics, names.LOSS.key, "loss {:.4f}"),
        _part(metrics, names.VALIDATION_LOSS.key, "validation loss {:.4f}"),
        _part(metrics, names.LEARNING_RATE.key, "lr {:.3g}"),
        _part(metrics, names.GRAD_NORM.key, "grad norm {:.3f}"),
        _part(metrics, names.TOKENS_PER_SECOND.key, "{:,.0f} tokens/s"),
    ]
    if names.STEP_SECONDS.key in metrics:
        parts.append(f"ETA {format_seconds(steps_left * metrics[names.STEP_SECONDS.key])}")
    return "  ".join(part for part in parts if part)


def _part(metrics: Mapping[str, Number], key: str, form: str) -> str:
    return form.format(metrics[key]) if key in metrics else ""
