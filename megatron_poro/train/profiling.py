"""A profile of chosen steps: where their time goes, as one table of all processes, and a trace of each.

``<run>/profile`` holds ``table.md`` and ``table.json`` (:mod:`megatron_poro.train.step_table`) and one
``trace_rank<r>.json.gz`` for each process. It is written under another name and renamed when it is whole, so it is
always of one profile; a later one takes its place. What is profiled is computed as ever: marks are set and operations
noted down, which takes time and changes no value.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_poro.checkpoint.store import sync, write_durably
from megatron_poro.errors import PoroError
from megatron_poro.logs import get_logger
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.step_clock import Part, StepMarks
from megatron_poro.train.folder import RunFolder
from megatron_poro.train.step_table import StepTable, mean_parts, span
from megatron_poro.train.tracing import Trace

TABLE_NAME = "table"
"""Its page is ``table.md``, its numbers are ``table.json``."""

logger = get_logger(__name__)


class Profile:
    """Measures the steps of a run: of those it is for every part, of the others how long they compute.

    All processes call every method alike.

    Args:
        steps: what to profile, counted from 1; empty for nothing.
        folder: of the run.
        groups: the process grid, whose clock the engine tells what it does.
        device: where this process computes.
    """

    def __init__(self, steps: range, *, folder: RunFolder, groups: ParallelGroups, device: torch.device) -> None:
        self._steps, self._folder, self._groups, self._device = steps, folder, groups, device
        self._staged = folder.profile.with_suffix(".tmp")
        self._measured: dict[int, StepMarks] = {}
        self._trace: Trace | None = None

    def begins_after(self, step: int) -> None:
        """Says which of the steps are too late to be profiled.

        Args:
            step: the last one that is done.
        """
        if not self._steps or self._steps[0] > step:
            return
        first, last = self._steps[0], self._steps[-1]
        left = f"only {span(step + 1, last)} can be" if step < last else "nothing is"
        logger.warning(
            "profile.steps=%d:%d begins in the past: the run goes on after step %d, so %s profiled",
            first,
            last,
            step,
            left,
        )

    def must_prepare(self, number: int) -> bool:
        """Whether :meth:`prepare` has something to do before a step."""
        if self._trace is None:
            return number in self._steps or number + 1 in self._steps
        return number in self._steps and not self._trace.is_running

    def prepare(self, number: int) -> None:
        """Gets ready for a step: the profiler in the one before the first, so that it is warm, else the recording.

        Args:
            number: of the step, which comes next.
        """
        self._trace = self._trace or Trace()
        if number in self._steps:
            self._trace.start()
            self._groups.world.any(False)  # who was ready first must not wait for the others in the step

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Measures the block, which reads the batches of a step and takes it."""
        clock = self._groups.clock
        if self._trace is None or number not in self._steps:
            with clock.step(self._device):
                yield
            return
        with self._trace.step(number), clock.step(self._device, watched=frozenset(Part)):
            yield
        self._measured[number] = clock.last

    def is_due(self, step: int) -> bool:
        """Whether the profile can be written after a step: arithmetic that comes out alike everywhere."""
        return bool(self._steps) and step == self._steps[-1]

    def write(self) -> None:
        """Writes the profile and logs its table; a disk that refuses is logged and does not end the run.

        Raises:
            LeaseLostError: if another job has taken the run over.
        """
        if self._trace is None or not self._measured:
            logger.warning("none of the steps in profile.steps was computed, so there is no profile")
            self.drop()
            return
        self._groups.world.any(False)  # ending a recording is work, and others may still be in the last step
        self._trace.stop()
        mine = mean_parts([marks.seconds() for marks in self._measured.values()])
        table = StepTable(list(self._measured), self._groups.topology, self._groups.world.gather(mine))
        try:
            self._write(table, self._trace)
        except _UnwrittenError as error:
            logger.warning("%s", error)
            if self._groups.world.is_first:
                shutil.rmtree(self._staged, ignore_errors=True)
        else:
            logger.info("%s\nwritten to %s", table.text(), self._folder.profile)
        self._trace, self._measured = None, {}

    def drop(self) -> None:
        """Forgets what has been measured so far; nothing is written or communicated."""
        if self._trace is not None:
            self._trace.stop()
        self._trace, self._measured = None, {}

    def _write(self, table: StepTable, trace: Trace) -> None:
        """Fills a folder of no name and gives it its own, in place of an earlier profile's."""
        world, final, staged = self._groups.world, self._folder.profile, self._staged
        removed = final.with_suffix(".removed")

        def explain(error: BaseException) -> Exception:
            if isinstance(error, PoroError):
                return error
            why = (error.strerror if isinstance(error, OSError) else None) or error
            return _UnwrittenError(f"the profile cannot be written to {final} ({why}); the run goes on without it.")

        with world.together(faults=(PoroError, OSError), explain=explain):
            if world.is_first:
                self._folder.require_held()
                for leftover in (staged, removed):
                    shutil.rmtree(leftover, ignore_errors=True)
                staged.mkdir()
        with world.together(faults=(PoroError, OSError), explain=explain):
            path = staged / f"trace_rank{world.rank}.json.gz"
            trace.write(path)
            sync(path)
            if world.is_first:
                write_durably(staged / f"{TABLE_NAME}.md", table.markdown().encode())
                write_durably(staged / f"{TABLE_NAME}.json", table.json().encode())
        with world.together(faults=(PoroError, OSError), explain=explain):
            if world.is_first:
                self._folder.require_held()
                if final.exists():
                    final.rename(removed)
                sync(staged)
                staged.rename(final)
                sync(final.parent)
                shutil.rmtree(removed, ignore_errors=True)


class _UnwrittenError(PoroError):
    """A profile that cannot be written."""
