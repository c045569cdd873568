"""Weights & Biases as a sink that can neither stop nor slow training: the only file that imports wandb.

A thread of its own imports, initialises and logs; training only puts lines into a bounded queue and drops them when it
is full. Any failure is reported once and ends the sink, not the run. A run that is started again continues the W&B run
of its id. After a rewind the next W&B run of the same group begins, so that a curve is one history and the abandoned
one can still be seen beside it. Steps are a value (``train/step``), not W&B's own counter: a run that resumes from a
step before the last one it logged would else lose its lines.
"""

import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megatron_poro.logs import get_logger
from megatron_poro.metrics import names
from megatron_poro.metrics.sinks import Number

_log = get_logger(__name__)

WandbMode = Literal["online", "offline", "disabled"]
"""Whether anything is sent, kept in files, or neither."""

_QUEUE_LINES = 10_000
_CLOSE_SECONDS = 30.0


@dataclass(frozen=True)
class WandbRun:
    """What W&B is told about a run.

    Attributes:
        project: project name.
        name: display name.
        run_id: made once for the run and kept through restarts and rewinds.
        lineage: how often the run has been rewound.
        folder: the run's folder; offline files live there.
        mode: whether anything is sent.
        config: the resolved configuration.
    """

    project: str
    name: str
    run_id: str
    lineage: int
    folder: Path
    mode: WandbMode
    config: Mapping[str, Any]

    @property
    def session_id(self) -> str:
        """Id of this lineage at W&B."""
        return f"{self.run_id}-{self.lineage}" if self.lineage else self.run_id

    @property
    def session_name(self) -> str:
        """Display name of this lineage at W&B."""
        return f"{self.name} (rewind {self.lineage})" if self.lineage else self.name


class WandbSink:
    """Logs lines to Weights & Biases from a thread.

    Args:
        run: what to tell W&B.
        close_seconds: how long :meth:`close` waits for the last lines.
    """

    def __init__(self, run: WandbRun, *, close_seconds: float = _CLOSE_SECONDS) -> None:
        self._run = run
        self._close_seconds = close_seconds
        # lines; the number of a lineage that begins; None at the end
        self._lines: queue.Queue[dict[str, Number] | int | None] = queue.Queue(_QUEUE_LINES)
        self._failed = threading.Event()
        self._warned_full = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def write(self, step: int, tokens: int, metrics: Mapping[str, Number]) -> None:
        if self._failed.is_set():
            return
        try:
            self._lines.put_nowait(dict(metrics))
        except queue.Full:
            if not self._warned_full:
                _log.warning("wandb takes lines more slowly than they come; some are dropped. metrics.jsonl has all.")
            self._warned_full = True

    def rewound(self, step: int, lineage: int) -> None:
        if not self._failed.is_set():
            with suppress(queue.Full):
                self._lines.put(lineage, timeout=self._close_seconds)

    def close(self) -> None:
        if not self._failed.is_set():
            with suppress(queue.Full):
                self._lines.put(None, timeout=self._close_seconds)
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            _log.warning(
                f"wandb has not finished after {self._close_seconds:.0f} s; left behind. metrics.jsonl has all."
            )

    def _work(self) -> None:
        """The thread: whatever goes wrong in wandb ends here."""
        try:
            session = self._start()
            while (line := self._lines.get()) is not None:
                if isinstance(line, int):
                    session.finish()
                    self._run = replace(self._run, lineage=line)
                    session = self._start()
                else:
                    session.log(line)
            session.finish()
        except BaseException as error:  # wandb also leaves by SystemExit
            self._failed.set()
            _log.warning(
                f"wandb is off for the rest of this run ({type(error).__name__}: {error}). metrics.jsonl has all."
            )

    def _start(self) -> Any:
        import wandb

        session = wandb.init(
            project=self._run.project,
            name=self._run.session_name,
            id=self._run.session_id,
            group=self._run.run_id,
            # offline files cannot be resumed, only synced into the run of the same id
            resume="allow" if self._run.mode == "online" else None,
            dir=str(self._run.folder),
            mode=self._run.mode,
            config=dict(self._run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        session.define_metric(names.STEP.key)
        session.define_metric("*", step_metric=names.STEP.key)
        return session
