"""The watchdog of one process: it bites when nothing gets on, and never while something does."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_poro.config.guards import GuardsConfig
from megatron_poro.train import watchdog as module
from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.peers import Peer
from megatron_poro.train.watchdog import Watchdog, delaying_since
from tests.support.deaths import in_child

PATIENT = GuardsConfig(hang_seconds=600.0, hang_startup_seconds=600.0)
HASTY = GuardsConfig(hang_seconds=0.2, hang_startup_seconds=0.2)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (
        ("TICK", 0.01),
        ("_GATHER", 0.1),
        ("_REPORT", 0.1),
        ("_GONE", 0.05),
        ("_NAME", 10.0),
        ("_TIMER", 60.0),
    ):
        monkeypatch.setattr(module, f"{name}_SECONDS", seconds)


class _Left:
    """Takes the place of the end of the process."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.happened = threading.Event()

    def __call__(self, code: int) -> None:
        self.code = code
        self.happened.set()


def _watchdog(folder: Path, guards: GuardsConfig, left: _Left, *others: Peer) -> Watchdog:
    peers = [Peer.this_process(0), *others]
    return Watchdog(folder, peers, rank=0, session="s", guards=guards, leave=left)


@pytest.fixture
def child() -> Iterator[Peer]:
    """A process that sleeps, as rank 1."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield replace(Peer.this_process(0), rank=1, pid=pid, started=_started(pid))
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20.0
    while not condition() and time.monotonic() < deadline:
        os.sched_yield()
    return condition()


def test_process_that_says_nothing_is_ended_and_its_stacks_are_kept(tmp_path: Path) -> None:
    left = _Left()
    with _watchdog(tmp_path, HASTY, left) as watchdog:
        watchdog.phase("step")
        assert left.happened.wait(20.0)
    assert left.code == ExitCode.HUNG
    folder = tmp_path / "stacks" / "hang_s"
    assert "test_process_that_says_nothing" in (folder / "rank_000.txt").read_text()
    assert "no process has got on" in (folder / "report.txt").read_text()


def test_process_that_gets_on_is_left_alone(tmp_path: Path) -> None:
    left = _Left()
    with _watchdog(tmp_path, HASTY, left) as watchdog:
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            watchdog.phase("step")
    assert left.code is None
    assert not (tmp_path / "stacks").exists()


@pytest.mark.parametrize("off", [{"hang_seconds": 0.0, "hang_startup_seconds": 0.0}])
def test_process_may_hang_for_ever_where_the_guard_is_off(tmp_path: Path, off: dict[str, float]) -> None:
    left = _Left()
    with _watchdog(tmp_path, GuardsConfig(**off), left):  # type: ignore[arg-type]
        assert not left.happened.wait(1.0)


def test_first_step_may_take_longer_than_the_others(tmp_path: Path) -> None:
    left = _Left()
    with _watchdog(tmp_path, replace(HASTY, hang_startup_seconds=600.0), left) as watchdog:
        assert not left.happened.wait(0.5)
        watchdog.started()
        assert left.happened.wait(20.0)


def test_process_that_is_gone_ends_the_others(tmp_path: Path, child: Peer) -> None:
    left = _Left()
    with _watchdog(tmp_path, PATIENT, left, child):
        assert not left.happened.wait(0.3), "it is alive"
        os.kill(child.pid, signal.SIGKILL)  # not reaped: what a launcher has not noticed yet
        assert left.happened.wait(20.0)
    assert left.code == ExitCode.LOST_PEER
    told = (tmp_path / "stacks" / "lost_s.txt").read_text()
    assert told.startswith(f"rank 1 (host {child.host}, process {child.pid}) ended before its time")


def test_others_may_be_gone_once_the_run_is_over(tmp_path: Path, child: Peer) -> None:
    left = _Left()
    with _watchdog(tmp_path, PATIENT, left, child) as watchdog:
        watchdog.closing()
        os.kill(child.pid, signal.SIGKILL)
        assert not left.happened.wait(0.5)


def test_stopped_process_is_ended_by_its_neighbour(tmp_path: Path, child: Peer) -> None:
    left = _Left()
    os.kill(child.pid, signal.SIGSTOP)
    with _watchdog(tmp_path, HASTY, left, child):
        assert left.happened.wait(20.0)
    assert left.code == ExitCode.HUNG
    assert _soon(child.is_gone)
    assert "rank 1" in (tmp_path / "stacks" / "hang_s" / "report.txt").read_text()
    assert delaying_since(tmp_path, 0.0) == [1]
    assert delaying_since(tmp_path, time.time() + 60.0) == []


def test_another_process_with_the_same_id_is_not_the_peer(child: Peer) -> None:
    later = replace(child, started="1")
    assert not child.is_gone()
    assert later.is_gone()
    later.kill()
    assert not child.is_gone(), "a process that is no peer is not killed"


def test_loss_is_told_once(tmp_path: Path, child: Peer) -> None:
    watchdogs = [_watchdog(tmp_path, PATIENT, _Left(), child) for _ in range(2)]
    os.kill(child.pid, signal.SIGKILL)
    told = [watchdog.loss_to_tell("Connection closed by peer") for watchdog in watchdogs]
    assert [sentence is not None for sentence in told] == [True, False]


def test_process_whose_watchdog_is_stuck_is_ended_by_the_timer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for_ever(*_: object) -> None:
        threading.Event().wait()

    def hang() -> None:
        signal.alarm(15)  # the end of a process that nothing else ends
        with _watchdog(tmp_path, HASTY, _Left()):
            wait_for_ever()

    monkeypatch.setattr(module, "_TIMER_SECONDS", 0.1)
    monkeypatch.setattr(Watchdog, "_write", wait_for_ever)  # as on a disk that does not answer
    assert in_child(hang) == 1


def test_control_file_is_answered_while_the_run_goes_on(tmp_path: Path) -> None:
    left, request = _Left(), tmp_path / "control" / "dump-stacks"
    request.parent.mkdir()
    with _watchdog(tmp_path, PATIENT, left) as watchdog:
        watchdog.phase("step")
        request.touch()
        assert _soon(lambda: not request.exists())
    assert left.code is None
    (folder,) = (tmp_path / "stacks").iterdir()
    assert (folder / "rank_000.txt").exists()
    assert "stacks as asked" in (folder / "report.txt").read_text()


def test_process_that_is_still_dying_is_named_all_the_same(tmp_path: Path, child: Peer) -> None:
    """Its connections are closed before its process id is gone."""
    watchdog, told = _watchdog(tmp_path, PATIENT, _Left(), child), []
    asking = threading.Thread(target=lambda: told.append(watchdog.loss_to_tell("Connection closed by peer")))
    asking.start()
    os.kill(child.pid, signal.SIGKILL)
    asking.join()
    assert str(told[0]).startswith("rank 1 (")
