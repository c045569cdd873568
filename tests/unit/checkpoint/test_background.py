"""A save that is under way while its caller trains on."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.background import BackgroundSaver
from megatron_poro.checkpoint.host_copy import HostCopy
from megatron_poro.checkpoint.resuming import resume
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.checkpoint.writing import WritePlan
from megatron_poro.errors import CheckpointError, UnsavableError
from megatron_poro.parallel.agreement import World
from tests.support.faulty_disk import FaultyDisk, refuse
from tests.unit.checkpoint.fake_engine import CONFIG, FakeEngine, run_state, snapshot


class Gate:
    """Holds a part of a save until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.opened = threading.Event()
        original = getattr(owner, name)

        def held(*arguments: Any, **options: Any) -> Any:
            assert self.opened.wait(30), "nobody opened the gate"
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, held)


def spoil(engine: FakeEngine) -> None:
    """What the next training step does: changes every value."""
    for fragment in engine.fragments():
        fragment.flat.fill_(7.0)


def saver_of(folder: Path, **options: Any) -> BackgroundSaver:
    return BackgroundSaver(CheckpointStore(folder, **options), World())


def test_what_is_saved_are_the_values_of_the_moment_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, WritePlan, "write")
    saver, engine = saver_of(tmp_path), FakeEngine(salt="step 1")
    saver.start(engine, run_state(1))
    spoil(engine)
    assert (saver.step, saver.is_busy) == (1, True)
    assert CheckpointStore(tmp_path).steps() == []
    gate.opened.set()
    assert saver.finish() == tmp_path / "step_00000001"
    assert (saver.step, saver.is_busy) == (None, False)
    loaded = FakeEngine(filled=False)
    resume(CheckpointStore(tmp_path), loaded, config=CONFIG, tokenizer_fingerprint="ab" * 32)
    assert loaded.wrong_fragments("step 1") == []


def test_it_writes_the_same_files_as_a_save_at_once(tmp_path: Path) -> None:
    save(CheckpointStore(tmp_path / "at once"), FakeEngine(), run_state(5))
    saver = saver_of(tmp_path / "behind")
    saver.start(FakeEngine(), run_state(5))
    saver.finish()
    assert snapshot(tmp_path / "behind") == snapshot(tmp_path / "at once")


def test_advancing_never_waits_for_what_is_not_done_when_asked_at_the_right_time(tmp_path: Path) -> None:
    saver = saver_of(tmp_path)
    assert saver.advance() is None
    saver.start(FakeEngine(), run_state(1))
    found = []
    while saver.step is not None:
        if not saver.is_busy:
            found.append(saver.advance())
    assert found == [None, tmp_path / "step_00000001"]  # written, then committed


def test_nothing_can_be_committed_before_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, CheckpointStore, "commit")
    saver = saver_of(tmp_path)
    saver.start(FakeEngine(), run_state(1))
    assert saver.advance() is None
    (staging,) = tmp_path.glob("*.tmp")
    assert (staging / "__0_0.distcp").exists()
    assert not (staging / manifest.MANIFEST_NAME).exists()
    gate.opened.set()
    assert saver.finish() is not None


def test_two_saves_at_a_time_are_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, WritePlan, "write")
    saver = saver_of(tmp_path)
    saver.start(FakeEngine(), run_state(1))
    with pytest.raises(AssertionError, match="step 1 is still being saved"):
        saver.start(FakeEngine(), run_state(2))
    gate.opened.set()
    saver.finish()


@pytest.mark.parametrize("method", ["write", "write_index"])
def test_a_failure_in_the_background_is_told_when_asked_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    saver = saver_of(tmp_path)
    saver.start(FakeEngine(salt="step 1"), run_state(1))
    saver.finish()
    before = snapshot(tmp_path)

    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(WritePlan, method, broken)
    saver.start(FakeEngine(), run_state(2))
    with pytest.raises(CheckpointError, match=r"step_00000002 was not written: Input/output error\. It needs"):
        saver.finish()
    assert saver.step is None
    assert snapshot(tmp_path) == before
    monkeypatch.undo()
    saver.start(FakeEngine(), run_state(3))
    assert saver.finish() == tmp_path / "step_00000003"


def test_a_bug_in_the_background_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WritePlan, "write", lambda *_: {}["bug"])
    saver = saver_of(tmp_path)
    saver.start(FakeEngine(), run_state(1))
    with pytest.raises(KeyError, match="bug"):
        saver.finish()


def test_a_value_that_is_not_finite_is_told_at_once_as_what_no_later_save_repairs(tmp_path: Path) -> None:
    engine, saver = FakeEngine(), saver_of(tmp_path / "checkpoints")
    next(engine.fragments()).flat[0] = float("nan")
    with pytest.raises(UnsavableError, match="is not finite at step 1"):
        saver.start(engine, run_state(1))
    assert saver.step is None
    assert not (tmp_path / "checkpoints").exists()


def test_a_job_that_lost_the_run_renames_and_removes_nothing(tmp_path: Path) -> None:
    save(CheckpointStore(tmp_path), FakeEngine(), run_state(1))
    (tmp_path / "step_00000009.of_the_other_job.tmp").mkdir()
    lost = False

    def ours() -> None:
        if lost:
            raise UnsavableError("another job has taken the run over")

    saver = saver_of(tmp_path, before_commit=ours, keep_last=1)
    lost = True
    with pytest.raises(UnsavableError, match="another job"):
        saver.start(FakeEngine(), run_state(2))
    assert (tmp_path / "step_00000009.of_the_other_job.tmp").exists()
    lost = False
    saver.start(FakeEngine(), run_state(2))
    assert saver.advance() is None
    lost = True  # it was frozen while it wrote
    with pytest.raises(UnsavableError, match="another job"):
        saver.finish()
    assert CheckpointStore(tmp_path).steps() == [1]


def test_the_memory_of_the_copy_is_used_again() -> None:
    engine, copy = FakeEngine(), HostCopy()
    first = [fragment.flat.data_ptr() for fragment in copy.take(engine.fragments())]
    spoil(engine)
    second = copy.take(engine.fragments())
    assert [fragment.flat.data_ptr() for fragment in second] == first
    assert all(bool((fragment.flat == 7.0).all()) for fragment in second)
    assert not {fragment.flat.data_ptr() for fragment in engine.fragments()} & set(first)


@pytest.mark.parametrize("kind", ["sync", "create", "write"])
def test_a_pointer_that_cannot_be_written_does_not_undo_a_complete_checkpoint(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What follows the rename is ``latest``; who resumes does not need it."""
    with FaultyDisk(tmp_path / "counted") as disk:
        save(CheckpointStore(tmp_path / "counted"), FakeEngine(), run_state(1))
    committed = max(index for index, one in enumerate(disk.operations) if (one.target or "").endswith("step_00000001"))
    at = next(index for index, one in enumerate(disk.operations) if index > committed and one.kind == kind)
    store = CheckpointStore(tmp_path / "spoilt")
    with FaultyDisk(store.folder, at=at, fault=refuse(errno.ENOSPC)):
        path = save(store, FakeEngine(), run_state(1))
    assert manifest.problems(path) == []
    assert "latest cannot be replaced (No space left on device)" in caplog.text


def test_an_old_checkpoint_stays_until_the_name_of_the_new_one_is_durable(tmp_path: Path) -> None:
    def save_two(store: CheckpointStore) -> None:
        for step in (1, 2):
            save(store, FakeEngine(), run_state(step))

    with FaultyDisk(tmp_path / "counted") as disk:
        save_two(CheckpointStore(tmp_path / "counted", keep_last=1))
    removed = next(index for index, one in enumerate(disk.operations) if (one.target or "").endswith(".removed"))
    assert disk.operations[removed - 1].kind == "sync"
    store = CheckpointStore(tmp_path / "spoilt", keep_last=1)
    with FaultyDisk(store.folder, at=removed - 1, fault=refuse(errno.EIO)):
        save_two(store)
    assert store.steps() == [2, 1]
