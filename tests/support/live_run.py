"""A training run whose processes can be watched, signalled and killed while it trains.

:func:`start` forks the processes of ``poro train`` from this one, which has imported everything already, so that a run
of four is training within a fraction of a second. Nothing plays the launcher: a process that is left waiting for a dead
one stays until it notices by itself or :meth:`LiveRun.end` is called.
"""

import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

import tests.support.preloaded  # noqa: F401  a child must not spend seconds on importing it
from megatron_poro.cli.train import main
from megatron_poro.train import build, loop  # noqa: F401  the same
from tests.support.ranks import free_port

_POLL_SECONDS = 0.002


class LiveRun:
    """The processes of one run.

    Attributes:
        pids: process ids by rank.
        logs: what each rank has printed, by rank.
    """

    def __init__(self, pids: Sequence[int], logs: Sequence[Path]) -> None:
        self.pids = tuple(pids)
        self.logs = tuple(logs)
        self._codes: dict[int, int] = {}

    def signal(self, number: signal.Signals, ranks: Sequence[int] | None = None) -> None:
        """Sends a signal to some processes, or to all; those that have ended are passed over."""
        for rank in range(len(self.pids)) if ranks is None else ranks:
            if rank not in self.poll():
                os.kill(self.pids[rank], number)

    def poll(self) -> Mapping[int, int]:
        """Exit codes of the ranks that have ended; death by signal N is -N, as in :mod:`subprocess`."""
        for rank, pid in enumerate(self.pids):
            if rank not in self._codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self._codes[rank] = os.waitstatus_to_exitcode(status)
        return self._codes

    def wait(self, timeout_seconds: float = 60.0) -> list[int]:
        """Waits for all processes and returns their exit codes in rank order.

        Raises:
            TimeoutError: with what the processes printed, after having killed them.
        """
        self.wait_until(lambda: len(self.poll()) == len(self.pids), timeout_seconds)
        return [self._codes[rank] for rank in range(len(self.pids))]

    def wait_until(self, condition: Callable[[], bool], timeout_seconds: float = 60.0) -> None:
        """Looks every few milliseconds until a condition holds; also ends when all processes have.

        Raises:
            TimeoutError: as :meth:`wait`.
        """
        deadline = time.monotonic() + timeout_seconds
        while not condition() and len(self.poll()) < len(self.pids):
            if time.monotonic() > deadline:
                running = [rank for rank in range(len(self.pids)) if rank not in self.poll()]
                self.end()
                raise TimeoutError(f"after {timeout_seconds} s ranks {running} were still running:\n{self.output()}")
            time.sleep(_POLL_SECONDS)

    def end(self) -> None:
        """Kills what is still running, as a launcher does, and waits for it."""
        self.signal(signal.SIGKILL)
        while len(self.poll()) < len(self.pids):
            time.sleep(_POLL_SECONDS)

    def output(self) -> str:
        """What all ranks have printed."""
        return "\n".join(f"--- rank {rank}\n{path.read_text()}" for rank, path in enumerate(self.logs))


@contextlib.contextmanager
def start(
    arguments: Sequence[str],
    *,
    world: int,
    folder: Path,
    prepare: Callable[[int], None] | None = None,
    command: Callable[[Sequence[str]], int] = main,
) -> Iterator[LiveRun]:
    """Starts a run for the length of a block; whatever is left of it at the end of the block is killed.

    Args:
        arguments: of ``poro train``.
        world: how many processes.
        folder: for what they print.
        prepare: called in each process with its rank before the command, to patch a fault in.
        command: what each process runs; its result is the exit code.
    """
    assert torch.get_num_threads() == 1, "fork needs a parent with one torch thread"
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    logs = [folder / f"rank_{rank}.log" for rank in range(world)]
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            _child(rank, world, port, logs[rank], arguments, prepare, command)
        pids.append(pid)
    run = LiveRun(pids, logs)
    try:
        yield run
    finally:
        run.end()


def _child(
    rank: int,
    world: int,
    port: int,
    log: Path,
    arguments: Sequence[str],
    prepare: Callable[[int], None] | None,
    command: Callable[[Sequence[str]], int],
) -> None:
    """Body of one process; never returns."""
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)  # a test runner has its own
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        if dist.is_initialized():  # inherited from the parent
            dist.destroy_process_group()
        if prepare is not None:
            prepare(rank)
        code = int(command(list(arguments)))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)
