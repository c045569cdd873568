"""Two jobs started on one run: at any offset, with and without locks, beside a frozen holder and after a dead one."""

import contextlib
import errno
import fcntl
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_poro.checkpoint import store
from megatron_poro.metrics import names
from megatron_poro.train import lease
from megatron_poro.train.exit_code import ExitCode
from tests.faults.tally import Budget, Tally
from tests.integration.toy import TOKENS_PER_STEP, RunOnDisk, ToyCorpora, assert_same_values
from tests.support.live_run import LiveRun, start

CLAIM = (
    "Of two jobs on one run exactly one trains; a job that was frozen and wakes up after another has taken over "
    "commits nothing and ends with an error; the result is that of one undisturbed job, bit for bit"
)
STEPS = 16
ENOUGH_SECONDS = 300.0
LEASE_SECONDS = 2.0

Trial = Callable[["_Jobs", random.Random], None]


def campaign(budget: Budget, rng: random.Random, folder: Path, kinds: Sequence[str] = ()) -> Tally:
    """The kinds take turns; all of :data:`KINDS` unless some are named."""
    corpora = ToyCorpora.make(folder / "corpora")
    undisturbed = _Jobs(corpora, folder / "control")
    with undisturbed.job("alone") as alone:
        assert alone.wait(ENOUGH_SECONDS) == [ExitCode.FINISHED], alone.output()
    kinds = kinds or list(KINDS)

    def trial(number: int) -> str:
        kind = kinds[number % len(kinds)]
        jobs = _Jobs(corpora, folder / str(number))
        KINDS[kind](jobs, rng)
        assert_same_values(jobs.found, undisturbed.found, STEPS)
        lines = [line[names.STEP.key] for line in jobs.found.lines()]
        assert lines == list(range(1, STEPS + 1)), f"metrics of steps {lines}"
        return kind

    return Tally(CLAIM).run(budget, trial)


class _Jobs:
    """Jobs of one process on one run, and who of them committed what."""

    def __init__(self, corpora: ToyCorpora, root: Path) -> None:
        self.found = RunOnDisk(root)
        self._root = root
        self._commits = root / "commits"
        self._arguments = corpora.arguments(
            root,
            f"schedule.total_tokens={STEPS * TOKENS_PER_STEP}",
            "checkpoint.every_steps=2",
            "checkpoint.asynchronous=false",
            f"run.lease_seconds={LEASE_SECONDS}",
        )

    @contextlib.contextmanager
    def job(self, name: str, *, machine: str = "here", locks: bool = True) -> Iterator[LiveRun]:
        """A job that says which machine it is on, and whether the file system has locks there."""

        def prepare(rank: int) -> None:
            lease.this_machine = lambda: machine
            if not locks:
                fcntl.flock = _no_locks
            _note_commits(self._commits, name)

        with start(self._arguments, world=1, folder=self._root / name, prepare=prepare) as live:
            yield live

    def commits(self) -> list[str]:
        """The job that made each commit, in their order."""
        return self._commits.read_text().split() if self._commits.exists() else []

    def forget(self) -> None:
        """Begins a new record of commits."""
        self._commits.unlink(missing_ok=True)

    def lines(self) -> int:
        """How many lines of metrics there are."""
        path = self.found.folder / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0


def _no_locks(*arguments: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def _note_commits(path: Path, name: str) -> None:
    """Makes this process write down each of its commits."""
    commit = store.CheckpointStore.commit

    def noting(self: store.CheckpointStore, *arguments: Any, **options: Any) -> Path:
        committed = commit(self, *arguments, **options)
        with path.open("a") as file:
            file.write(f"{name}\n")
        return committed

    store.CheckpointStore.commit = noting  # type: ignore[method-assign]


def _wait(live: LiveRun, seconds: float) -> None:
    """Lets a job run for some time, or to its end."""
    until = time.monotonic() + seconds
    live.wait_until(lambda: time.monotonic() >= until, ENOUGH_SECONDS)


def _at_once(jobs: _Jobs, rng: random.Random, *, machines: tuple[str, str], locks: bool) -> None:
    """Two launchers at a random offset; the second one may also come after the end of the first."""
    with jobs.job("one", machine=machines[0], locks=locks) as one:
        _wait(one, rng.choice([0.0, rng.uniform(0.0, 0.2), rng.uniform(0.0, 0.8)]))
        with jobs.job("two", machine=machines[1], locks=locks) as two:
            codes = sorted(one.wait(ENOUGH_SECONDS) + two.wait(ENOUGH_SECONDS))
            told = one.output() + two.output()
    commits = set(jobs.commits())
    if codes == [ExitCode.FINISHED, ExitCode.FINISHED]:  # one after the other
        assert "done." in told, told
        assert commits == {"one"} or commits == {"two"}, commits
    else:
        assert codes == [ExitCode.FINISHED, ExitCode.IN_USE], f"{codes}\n{told}"
        assert "in use by another job" in told, told
        assert len(commits) == 1, f"commits by {commits}\n{told}"


def _with_locks(jobs: _Jobs, rng: random.Random) -> None:
    _at_once(jobs, rng, machines=("here", "here"), locks=True)


def _without_locks(jobs: _Jobs, rng: random.Random) -> None:
    _at_once(jobs, rng, machines=("here", "there"), locks=False)


def _after_a_death(jobs: _Jobs, rng: random.Random) -> None:
    """The holder is killed; two jobs want to follow it, on its machine or on another one."""
    with jobs.job("dead") as dead:
        last = rng.randrange(STEPS - 4)
        dead.wait_until(lambda: jobs.lines() > last, ENOUGH_SECONDS)
        dead.signal(signal.SIGKILL)
        assert dead.wait(ENOUGH_SECONDS) == [-signal.SIGKILL], "it was done before it could be killed"
    jobs.forget()
    _at_once(jobs, rng, machines=rng.choice([("here", "here"), ("there", "there")]), locks=True)


def _frozen_here(jobs: _Jobs, rng: random.Random) -> None:
    """On its own machine a frozen job still has the lock: nobody takes over, and it goes on when it wakes up."""
    with jobs.job("frozen") as frozen:
        _freeze(jobs, frozen, rng)
        with jobs.job("two") as two:
            assert two.wait(ENOUGH_SECONDS) == [ExitCode.IN_USE], two.output()
        frozen.signal(signal.SIGCONT)
        assert frozen.wait(ENOUGH_SECONDS) == [ExitCode.FINISHED], frozen.output()
    assert set(jobs.commits()) == {"frozen"}


def _frozen_elsewhere(jobs: _Jobs, rng: random.Random) -> None:
    """A frozen job of another machine is taken over, and wakes up at some moment after that."""
    with jobs.job("frozen", machine="there", locks=False) as frozen:
        _freeze(jobs, frozen, rng)
        before = jobs.commits()
        with jobs.job("two", locks=False) as two:
            if rng.random() < 0.5:
                reached = len(before) + rng.randint(1, 3)
                two.wait_until(lambda: len(jobs.commits()) >= reached, ENOUGH_SECONDS)
            else:
                two.wait(ENOUGH_SECONDS)
            frozen.signal(signal.SIGCONT)
            assert frozen.wait(ENOUGH_SECONDS) == [ExitCode.IN_USE], frozen.output()
            assert "taken over" in frozen.output(), frozen.output()
            assert two.wait(ENOUGH_SECONDS) == [ExitCode.FINISHED], two.output()
    after = jobs.commits()[len(before) :]
    assert set(after) == {"two"}, f"commits after the takeover: {after}"


def _frozen_for_a_moment(jobs: _Jobs, rng: random.Random) -> None:
    """A job that wakes up before its lease is over goes on, and the one that waited for it gives up."""
    with jobs.job("frozen", machine="there", locks=False) as frozen:
        _freeze(jobs, frozen, rng)
        with jobs.job("two", locks=False) as two:
            two.wait_until(lambda: two.logs[0].exists() and "taking it over" in two.output(), ENOUGH_SECONDS)
            frozen.signal(signal.SIGCONT)
            codes = (frozen.wait(ENOUGH_SECONDS), two.wait(ENOUGH_SECONDS))
            told = frozen.output() + two.output()
    assert codes == ([ExitCode.FINISHED], [ExitCode.IN_USE]), f"{codes}\n{told}"
    assert set(jobs.commits()) == {"frozen"}


def _freeze(jobs: _Jobs, frozen: LiveRun, rng: random.Random) -> None:
    last = rng.randrange(STEPS - 8)
    frozen.wait_until(lambda: jobs.lines() > last, ENOUGH_SECONDS)
    _wait(frozen, rng.uniform(0.0, 0.01))
    frozen.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, frozen.pids[0], os.WSTOPPED | os.WNOWAIT)


KINDS: Mapping[str, Trial] = {
    "locks": _with_locks,
    "no locks": _without_locks,
    "after a death": _after_a_death,
    "frozen here": _frozen_here,
    "frozen elsewhere": _frozen_elsewhere,
    "frozen for a moment": _frozen_for_a_moment,
}
