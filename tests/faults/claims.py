"""Many processes that want one run folder at the same moment: what two launchers do, without the training around it."""

import errno
import fcntl
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from megatron_poro.errors import RunInUseError
from megatron_poro.train import lease
from megatron_poro.train.folder import RunFolder
from tests.faults.tally import Budget, Tally

CLAIM = (
    "Of several processes that claim a run folder at random offsets never two hold it at once, and one always gets it"
)
PROCESSES = 4
LEASE_SECONDS = 0.5
REFUSED = 2


def campaign(budget: Budget, rng: random.Random, folder: Path) -> Tally:
    """A trial is one folder. A holder keeps it for some milliseconds and lets go of it, or dies."""

    def trial(number: int) -> str:
        path, has_locks = folder / str(number), rng.random() < 0.5
        machines = ["here"] * PROCESSES if has_locks else [f"machine {rank}" for rank in range(PROCESSES)]
        path.mkdir()
        children = [
            _start(
                path,
                name=str(rank),
                machine=machines[rank],
                has_locks=has_locks,
                offset=rng.uniform(0.0, 0.05) if rank else 0.0,
                hold=rng.uniform(0.0, 0.05),
                dies=rng.random() < 0.3,
            )
            for rank in range(PROCESSES)
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert set(codes) <= {0, REFUSED}, f"exit codes {codes}"
        _require_one_at_a_time(path / "holders")
        return "locks" if has_locks else "no locks"

    return Tally(CLAIM).run(budget, trial)


def _start(path: Path, *, name: str, machine: str, has_locks: bool, offset: float, hold: float, dies: bool) -> int:
    """A process that claims the folder once; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    logging.disable()  # that there are no locks would be told by each
    try:
        lease.this_machine = lambda: machine
        if not has_locks:
            fcntl.flock = _no_locks
        time.sleep(offset)
        status = _hold(path, name, lambda: time.sleep(hold), dies=dies)
    finally:
        os._exit(status)


def _hold(path: Path, name: str, work: Callable[[], None], *, dies: bool) -> int:
    folder = RunFolder(path, lease_seconds=LEASE_SECONDS)
    try:
        folder.claim()
    except RunInUseError:
        return REFUSED
    _note(path / "holders", f"{name} has it")
    work()
    folder.require_held()
    _note(path / "holders", f"{name} {'dies' if dies else 'lets go'}")
    if not dies:
        folder.release()
    return 0


def _no_locks(*arguments: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def _note(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")


def _require_one_at_a_time(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines, "nobody got it"
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert entered.split()[0] == left.split()[0], f"two at once: {lines}"
