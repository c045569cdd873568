"""Saving while training goes on: one writer thread per process, and the main threads agree on how far they are.

The main threads do all that needs other processes, at step boundaries; a writer thread only ever touches its own file.
So nothing that happens to a writer can leave a process waiting in a collective call: it has ended, well or badly, when
the main threads next ask.
"""

from collections.abc import Callable
from pathlib import Path
from threading import Thread

from megatron_poro.checkpoint.fragment import chunked_tensors
from megatron_poro.checkpoint.host_copy import HostCopy
from megatron_poro.checkpoint.saving import CheckpointInMaking, owned_fragments
from megatron_poro.checkpoint.state import RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.engine.engine import Engine
from megatron_poro.parallel.agreement import World
from megatron_poro.tokenizer.tokenizer import Tokenizer

_CLOSE_SECONDS = 60.0


class BackgroundSaver:
    """At most one save at a time, which is under way while its caller does other things.

    All processes make the same calls at the same steps, but for :attr:`is_busy`, which each looks at by itself and all
    tell each other. Where that is false on every process, :meth:`advance` brings the save one part further::

        saver.start(engine, state)
        ...                                   # a step, or several
        if not world.any(saver.is_busy):
            path = saver.advance()            # None until the checkpoint is complete

    Args:
        store: the run's checkpoints.
        world: the processes that save together.
    """

    def __init__(self, store: CheckpointStore, world: World) -> None:
        self._store, self._world = store, world
        self._copy = HostCopy()
        self._making: CheckpointInMaking | None = None
        self._task: _Task | None = None
        self._is_written = False

    @property
    def step(self) -> int | None:
        """The step that is being saved; the same on all processes."""
        return None if self._making is None else self._making.step

    @property
    def is_busy(self) -> bool:
        """Whether this process's thread is still at work."""
        return self._task is not None and self._task.is_alive()

    def start(self, engine: Engine, state: RunState, *, tokenizer: Tokenizer | None = None) -> None:
        """Copies the engine's masters and moments and begins to write the copy. All processes call it.

        When it returns, the engine may change.

        Raises:
            UnsavableError: on every process alike, if a value is not finite.
            CheckpointError: on every process alike, if the disk has no room or is not writable, or the step has a
                checkpoint already. Nothing is under way then.
        """
        assert self._making is None, f"step {self.step} is still being saved"
        copies = self._copy.take(owned_fragments(engine, step=state.step))
        making = CheckpointInMaking(self._store, chunked_tensors(copies), state, world=self._world, tokenizer=tokenizer)
        self._making, self._is_written, self._task = making, False, _Task(making.write)

    def advance(self) -> Path | None:
        """Goes on with what can be done now, waiting for threads still at work. All processes call it.

        Returns:
            The checkpoint, once it is complete; None while there is more to do, or nothing at all.

        Raises:
            CheckpointError: on every process alike, if a thread of any process failed. The save is over.
        """
        making, task = self._making, self._task
        if making is None or task is None:
            return None
        self._making = self._task = None
        with making.part():
            task.result()
        if self._is_written:
            return self._store.path(making.step)
        making.collect()
        self._making, self._is_written, self._task = making, True, _Task(making.commit)
        return None

    def finish(self) -> Path | None:
        """Waits until nothing is under way. All processes call it.

        Returns:
            The checkpoint that has been completed; None if nothing was under way.

        Raises:
            CheckpointError: as :meth:`advance`.
        """
        path = None
        while self._making is not None:
            path = self.advance()
        return path

    def close(self) -> None:
        """Waits for this process's thread for a while, so that it does not outlive what it uses."""
        if self._task is not None:
            self._task.wait(_CLOSE_SECONDS)


class _Task:
    """A call in a thread of its own that does not keep the process from ending."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Waits for the end, but not longer."""
        self._thread.join(seconds)

    def result(self) -> None:
        """Waits for the end; raises what the call raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error
