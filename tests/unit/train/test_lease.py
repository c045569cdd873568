"""One job holds a run: on one machine by the kernel's lock, across machines by a heartbeat, and a late riser is out."""

import errno
import fcntl
import os
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from megatron_poro.config.run import RunSection
from megatron_poro.errors import RunInUseError
from megatron_poro.train.control import Notice
from megatron_poro.train.folder import RunFolder
from megatron_poro.train.lease import Lease, LeaseLostError
from tests.support.deaths import in_child

BLINK = 0.2
"""Seconds of a lease, where a test has to wait for it."""


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders that show no heartbeat, like processes that are stopped."""
    monkeypatch.setattr(Lease, "_beat", lambda lease: None)


def lease(folder: Path, machine: str = "a", seconds: float = BLINK, job: str | None = None) -> Lease:
    return Lease(folder, seconds=seconds, machine=machine, job=job)


def records(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "lease").iterdir())


def test_second_job_is_refused_at_once_and_told_who_is_there(tmp_path: Path) -> None:
    first = lease(tmp_path, job="4711")
    assert first.acquire() is False
    began = time.monotonic()
    with pytest.raises(RunInUseError, match=rf"in use by another job \(job 4711, process {os.getpid()} on "):
        lease(tmp_path, seconds=60).acquire()
    assert time.monotonic() - began < 10
    first.require_held()
    first.release()


def test_released_run_is_free_at_once_for_everybody(tmp_path: Path) -> None:
    for number, machine in enumerate(("a", "b", "a"), 1):
        one = lease(tmp_path, machine, seconds=1000)
        assert one.acquire() is False
        assert records(tmp_path) == [f"{number:08d}.json"]
        one.release()


def die_holding(folder: Path, machine: str, seconds: float) -> None:
    """A job takes the run and is killed."""
    assert in_child(lambda: lease(folder, machine, seconds).acquire()) == 0


def test_run_of_a_dead_job_of_this_machine_is_free_at_once(tmp_path: Path) -> None:
    die_holding(tmp_path, "a", seconds=1000)
    one = lease(tmp_path, "a", seconds=1000)
    assert one.acquire() is False, "the kernel has proven that it is dead"
    one.release()


def test_run_of_a_dead_job_of_another_machine_is_free_after_its_silence(tmp_path: Path) -> None:
    """The lock alone proves nothing: on some file systems it is known to one machine only."""
    die_holding(tmp_path, "a", BLINK)
    one = lease(tmp_path, "b", seconds=0.01)
    began = time.monotonic()
    assert one.acquire() is True
    assert time.monotonic() - began >= BLINK, "as long as the holder promised, not as the newcomer would like"
    one.release()


@pytest.mark.usefixtures("no_locks")
def test_job_that_beats_is_seen_from_a_machine_that_knows_no_lock(tmp_path: Path) -> None:
    first = lease(tmp_path, "a")
    first.acquire()
    with pytest.raises(RunInUseError, match="in use by another job"):
        lease(tmp_path, "b").acquire()
    first.require_held()
    first.release()


@pytest.mark.usefixtures("no_locks", "frozen")
def test_frozen_job_that_wakes_up_after_a_takeover_is_out(tmp_path: Path) -> None:
    first, second = lease(tmp_path, "a"), lease(tmp_path, "b")
    first.acquire()
    first.require_held()
    assert second.acquire() is True
    assert first.is_lost()
    with pytest.raises(LeaseLostError, match="was taken over by process"):
        first.require_held()
    second.require_held()
    first.release()
    assert records(tmp_path) == ["00000002.json"], "who has lost it lets go of nothing"
    with pytest.raises(LeaseLostError):
        first.require_held()
    second.release()


@pytest.mark.usefixtures("no_locks")
def test_heart_finds_out_by_itself(tmp_path: Path) -> None:
    first = lease(tmp_path, "a", seconds=0.02)
    first.acquire()
    (tmp_path / "lease" / "00000002.json").write_text("")
    until = time.monotonic() + 30
    while not first._lost.is_set():
        assert time.monotonic() < until
    first.release()


@pytest.mark.usefixtures("no_locks", "frozen")
def test_one_of_two_that_waited_for_the_same_silence_gets_the_run(tmp_path: Path) -> None:
    lease(tmp_path, "dead").acquire()
    go, outcomes = Event(), []

    def launch(machine: str) -> None:
        one = lease(tmp_path, machine)
        go.wait()
        try:
            outcomes.append(one.acquire())
        except RunInUseError:
            outcomes.append(None)

    threads = [Thread(target=launch, args=(machine,)) for machine in ("b", "c", "d")]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == [None, None, True]


@pytest.mark.usefixtures("no_locks", "frozen")
def test_job_that_was_overtaken_at_the_last_moment_does_not_get_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease(tmp_path, "dead").acquire()
    slow, quick = lease(tmp_path, "b"), lease(tmp_path, "c")

    def overtaken(one: Lease, number: int, content: bytes) -> bool:
        return True if one is quick else quick.acquire()

    monkeypatch.setattr(Lease, "_wait_for_silence", overtaken)
    with pytest.raises(RunInUseError, match="in use by another job"):
        slow.acquire()
    quick.require_held()


@pytest.mark.usefixtures("frozen")
def test_job_that_died_before_it_wrote_its_name_is_waited_for_too(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "00000007.json").write_text("")
    one = lease(tmp_path)
    assert one.acquire() is True
    assert records(tmp_path) == ["00000008.json"]


def test_job_that_lets_go_while_another_waits_is_followed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_holding(tmp_path, "a", seconds=1000)
    path = tmp_path / "lease" / "00000001.json"

    def let_go(seconds: float) -> None:
        path.write_text(path.read_text().replace('"released": false', '"released": true'))

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", let_go)
        one = lease(tmp_path, "b", seconds=1000)
        assert one.acquire() is False
    one.release()


def test_disk_that_refuses_the_heartbeat_does_not_end_the_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = lease(tmp_path, seconds=0.02)
    one.acquire()
    (tmp_path / "lease").rename(tmp_path / "elsewhere")
    until = time.monotonic() + 30
    while "heartbeat" not in caplog.text:
        assert time.monotonic() < until
    (tmp_path / "elsewhere").rename(tmp_path / "lease")
    one.require_held()
    one.release()


# --- the folder of a run ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_locks", "frozen")
def test_takeover_leaves_the_late_riser_nothing_to_commit_and_no_metrics_to_write_to(tmp_path: Path) -> None:
    first, second = (RunFolder(tmp_path, lease_seconds=BLINK) for _ in range(2))
    first.claim()
    staged = first.checkpoints / "step_00000003.tmp"
    staged.mkdir(parents=True)
    first.metrics.write_text('{"train/step": 1}\n')
    with first.metrics.open("a") as late:
        second.claim()
        late.write('{"train/step": 2}\n')
    assert second.metrics.read_text() == '{"train/step": 1}\n'
    with pytest.raises(FileNotFoundError):
        staged.rename(first.checkpoints / "step_00000003")
    assert first.notice() == Notice.LEASE_LOST
    assert second.notice() == Notice(0)
    with pytest.raises(LeaseLostError, match="taken over by another job"):
        first.require_ours(first.notice())
    second.require_ours(second.notice())
    with pytest.raises(LeaseLostError):
        first.require_held()


def test_ordinary_start_leaves_everything_as_it_is(tmp_path: Path) -> None:
    folder = RunFolder.of(RunSection(name="run", root=str(tmp_path)))
    folder.claim()
    folder.release()
    folder.metrics.write_text("{}\n")
    inode = folder.metrics.stat().st_ino
    folder.claim()
    assert folder.metrics.stat().st_ino == inode
    folder.release()


def test_process_that_holds_nothing_has_nothing_to_say(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.require_held()
    assert folder.notice() == Notice(0)
    folder.release()
