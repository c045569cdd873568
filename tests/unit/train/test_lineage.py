"""One history for a run: rewinds overwrite nothing, and are done or not done whenever a machine dies."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.errors import CheckpointError
from megatron_poro.train import lineage
from megatron_poro.train.abandoning import move_away
from megatron_poro.train.lineage import Lineage, RunRecord, StepRange, read_record, record_of
from tests.support.deaths import DEAD, die_at, in_child
from tests.unit.train.run_on_disk import commit, contents, export, lines, train


def store_of(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints")


def saved_steps(folder: Path) -> list[int]:
    return sorted(store_of(folder).steps())


def run_of_ten(folder: Path) -> Lineage:
    """Ten steps, checkpoints after 3, 6 and 9, exports of 3 and 9, skipped samples of step 8."""
    history = train(folder, range(1, 11), saved=(3, 6, 9))
    export(folder, "300", 3)
    export(folder, "900", 9)
    (folder / "skipped").mkdir()
    (folder / "skipped" / "step_00000008.jsonl").write_text("{}\n")
    return history


# --- the record ------------------------------------------------------------------------------------------------------


def test_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    history = run_of_ten(tmp_path)
    history.rewind(6, StepRange(8, 9), "spike")
    history.rewind(3, None, "again")
    record = read_record(tmp_path)
    assert record == history.record
    assert record is not None
    assert [(one.number, one.left, one.to, one.reason) for one in record.rewinds] == [
        (1, 9, 6, "spike"),
        (2, 6, 3, "again"),
    ]
    assert json.loads((tmp_path / "run.json").read_text())["lineage"] == 2


def test_run_id_is_made_once(tmp_path: Path) -> None:
    first = run_of_ten(tmp_path).run_id
    assert Lineage(tmp_path, record_of(tmp_path, store_of(tmp_path)), writes=True).run_id == first
    assert RunRecord.new().run_id != first


def test_process_that_does_not_write_knows_the_same(tmp_path: Path) -> None:
    writer = run_of_ten(tmp_path)
    other = Lineage(tmp_path / "nowhere", writer.record, writes=False)
    for one in (writer, other):
        one.committed(9)
        one.rewind(6, StepRange(7, 8))
    assert (other.number, other.record.skip, other.record.committed_step) == (1, (StepRange(7, 8),), 6)
    assert writer.record.skip == other.record.skip
    assert not (tmp_path / "nowhere").exists()


def test_skipped_steps_are_those_of_all_rewinds_with_both_ends(tmp_path: Path) -> None:
    history = run_of_ten(tmp_path)
    history.rewind(6, StepRange(8, 9))
    history.rewind(3, StepRange(5, 5))
    assert [step for step in range(1, 12) if history.is_skipped(step)] == [5, 8, 9]


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"format": 1}', b'{"format": 99}', b"\0" * 50])
def test_damaged_record_is_named(tmp_path: Path, damage: bytes) -> None:
    run_of_ten(tmp_path)
    (tmp_path / "run.json").write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"run\.json"):
        record_of(tmp_path, store_of(tmp_path))


def test_record_of_a_later_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    run_of_ten(tmp_path)
    path = tmp_path / "run.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(CheckpointError, match=r"run\.json has format 9, this release reads 1"):
        record_of(tmp_path, store_of(tmp_path))


def test_disk_that_refuses_the_record_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    history = run_of_ten(tmp_path)

    def refuse(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", "run.json")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        history.committed(12)
    assert history.record.committed_step == 12
    kept = read_record(tmp_path)
    assert kept is not None
    assert kept.committed_step == 9
    history.committed(15)
    assert read_record(tmp_path) == history.record


# --- a run does not begin again by itself ----------------------------------------------------------------------------


def test_run_that_has_saved_does_not_begin_again_without_its_checkpoints(tmp_path: Path) -> None:
    run_of_ten(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"saved step 9, but .*checkpoints holds no checkpoint"):
        record_of(tmp_path, store_of(tmp_path))


def test_run_that_never_saved_may_begin_again(tmp_path: Path) -> None:
    history = train(tmp_path, range(1, 4), saved=())
    assert record_of(tmp_path, store_of(tmp_path)) == history.record


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run_of_ten(tmp_path / "mine")
    other = run_of_ten(tmp_path / "other")
    shutil.rmtree(tmp_path / "mine" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "mine" / "checkpoints")
    with pytest.raises(CheckpointError, match=f"step_00000009 was written by run {other.run_id}"):
        record_of(tmp_path / "mine", store_of(tmp_path / "mine"))


def test_lost_record_is_made_again_with_the_id_of_the_checkpoints(tmp_path: Path) -> None:
    run_id = run_of_ten(tmp_path).run_id
    (tmp_path / "run.json").unlink()
    assert record_of(tmp_path, store_of(tmp_path)).run_id == run_id


def test_imported_model_begins_a_run_of_its_own(tmp_path: Path) -> None:
    commit(tmp_path, 0)
    assert record_of(tmp_path, store_of(tmp_path)).run_id


# --- rewinds ---------------------------------------------------------------------------------------------------------


def test_rewind_moves_what_came_later_and_keeps_all_of_it(tmp_path: Path) -> None:
    history = run_of_ten(tmp_path)
    before = contents(tmp_path)
    history.rewind(6, StepRange(8, 8), "a bad batch")
    assert saved_steps(tmp_path) == [3, 6]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000006\n"
    assert sorted(path.name for path in (tmp_path / "exports").iterdir()) == ["300"]
    assert lines(tmp_path / "metrics.jsonl") == [(step, 0) for step in range(1, 7)]
    branch = tmp_path / "abandoned" / "1"
    assert saved_steps(branch) == [9]
    assert lines(branch / "metrics.jsonl") == [(step, 0) for step in range(7, 11)]
    after = {**contents(tmp_path), **contents(branch)}
    for name in (
        "checkpoints/step_00000009/meta.json",
        "exports/900/export_report.json",
        "skipped/step_00000008.jsonl",
    ):
        assert after[name] == before[name]
        assert not (tmp_path / name).exists()
    assert not (tmp_path / "rewind.json").exists()


def test_rewind_to_the_newest_checkpoint_takes_the_steps_after_it(tmp_path: Path) -> None:
    run_of_ten(tmp_path).rewind(9, StepRange(10, 11))
    assert saved_steps(tmp_path) == [3, 6, 9]
    assert lines(tmp_path / "abandoned" / "1" / "metrics.jsonl") == [(10, 0)]


def test_rewind_to_the_start_lets_the_run_begin_again(tmp_path: Path) -> None:
    history = run_of_ten(tmp_path)
    history.rewind(0)
    assert saved_steps(tmp_path) == []
    assert not (tmp_path / "checkpoints" / "latest").exists()
    assert record_of(tmp_path, store_of(tmp_path)) == history.record
    assert saved_steps(tmp_path / "abandoned" / "1") == [3, 6, 9]


def test_damaged_checkpoint_is_abandoned_too_and_a_save_that_was_cut_short_is_not(tmp_path: Path) -> None:
    history = run_of_ten(tmp_path)
    for name in ("step_00000009.damaged", "step_00000012.tmp"):
        (tmp_path / "checkpoints" / name).mkdir()
    history.rewind(6)
    assert (tmp_path / "abandoned" / "1" / "checkpoints" / "step_00000009.damaged").is_dir()
    assert (tmp_path / "checkpoints" / "step_00000012.tmp").is_dir()


@pytest.mark.parametrize(
    ("to", "skip", "told"),
    [
        (5, None, "has no checkpoint of step 5; it has 3, 6, 9"),
        (-1, None, "has no checkpoint of step -1"),
        (6, StepRange(6, 8), "steps 6:8 cannot be skipped after a rewind to step 6"),
        (6, StepRange(9, 8), "steps 9:8 cannot be skipped"),
    ],
)
def test_rewind_that_makes_no_sense_changes_nothing(tmp_path: Path, to: int, skip: StepRange | None, told: str) -> None:
    history = run_of_ten(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=told):
        history.rewind(to, skip)
    assert contents(tmp_path) == before
    assert history.number == 0


def test_rewind_to_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    history = run_of_ten(tmp_path)
    (tmp_path / "checkpoints" / "step_00000006" / "meta.json").write_text("x")
    with pytest.raises(CheckpointError, match=r"step_00000006 is damaged \(meta\.json"):
        history.rewind(6)


def test_rewind_never_uses_a_folder_that_exists(tmp_path: Path) -> None:
    history = run_of_ten(tmp_path)
    (tmp_path / "abandoned" / "1").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"abandoned/1 exists"):
        history.rewind(6)
    assert saved_steps(tmp_path) == [3, 6, 9]


def test_nothing_is_moved_over_what_is_there(tmp_path: Path) -> None:
    for place in ("exports/2k", "abandoned/1/exports/2k"):
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(FileExistsError, match="it exists"):
        move_away(tmp_path, 0, ["exports/2k"], 1)
    assert (tmp_path / "exports/2k").exists()


def test_run_that_is_no_longer_ours_is_not_rewound(tmp_path: Path) -> None:
    run_of_ten(tmp_path)

    def refuse() -> None:
        raise CheckpointError("taken over")

    record = record_of(tmp_path, store_of(tmp_path))
    with pytest.raises(CheckpointError, match="taken over"):
        Lineage(tmp_path, record, writes=True, before_rewind=refuse).rewind(6)
    assert saved_steps(tmp_path) == [3, 6, 9]


def test_twenty_random_rewinds_lose_nothing_and_every_branch_is_monotone(tmp_path: Path) -> None:
    rng = random.Random(27)
    history, at = train(tmp_path, range(1, 13), saved=range(2, 13, 2)), 12
    seen: dict[str, set[str]] = {}
    for number in range(1, 21):
        _remember(tmp_path, seen)
        to = rng.choice([0, *saved_steps(tmp_path)])
        skip = StepRange(to + 1, to + rng.randint(1, 3)) if rng.random() < 0.5 else None
        history.rewind(to, skip, f"rewind {number}")
        at = to + rng.randint(1, 8)
        saved = [step for step in range(to + 1, at + 1) if rng.random() < 0.6]
        train(tmp_path, range(to + 1, at + 1), saved=saved)
        history = Lineage(tmp_path, record_of(tmp_path, store_of(tmp_path)), writes=True)
        assert history.number == number
    _remember(tmp_path, seen)

    assert [one.number for one in history.record.rewinds] == list(range(1, 21))
    branches = [tmp_path, *(tmp_path / "abandoned" / str(number) for number in range(1, 21))]
    for branch in branches:
        steps = [step for step, _ in lines(branch / "metrics.jsonl")]
        assert steps == sorted(set(steps))
        lineages = [number for _, number in lines(branch / "metrics.jsonl")]
        assert lineages == sorted(lineages)
    assert [step for step, _ in lines(tmp_path / "metrics.jsonl")] == list(range(1, at + 1))
    now: dict[str, set[str]] = {}
    _remember(tmp_path, now)
    assert now == seen, "every checkpoint and every line that ever was is still there"


def _remember(folder: Path, seen: dict[str, set[str]]) -> None:
    """Notes every checkpoint by its content, and every line of metrics."""
    for path in folder.rglob("meta.json"):
        seen.setdefault("checkpoints", set()).add(path.read_text())
    for path in folder.rglob("metrics.jsonl"):
        seen.setdefault("lines", set()).update(path.read_text().splitlines())


# --- a rewind that is cut short --------------------------------------------------------------------------------------


def rewind_and_die_at(event: int, folder: Path) -> int:
    """A rewind in a process that dies at one of its file operations; its status, 0 if it did not get that far."""

    def body() -> None:
        die_at(event, folder)
        Lineage(folder, record_of(folder, store_of(folder)), writes=True).rewind(3, StepRange(5, 6), "why")

    return in_child(body)


def test_death_at_any_moment_of_a_rewind_leaves_the_run_as_before_or_as_after(tmp_path: Path) -> None:
    """Exhaustive: one rewind for each of its file operations, killed just before it."""
    run_of_ten(tmp_path / "before")
    outcomes = []
    for event in range(1000):
        folder = tmp_path / str(event)
        shutil.copytree(tmp_path / "before", folder)
        status = rewind_and_die_at(event, folder)
        record = record_of(folder, store_of(folder))
        outcomes.append((status, record.lineage))
        steps, tail = saved_steps(folder), lines(folder / "metrics.jsonl")
        if record.lineage == 0:
            assert steps == [3, 6, 9]
            assert len(tail) == 10
        else:
            assert (steps, record.committed_step, record.skip) == ([3], 3, (StepRange(5, 6),))
            assert (folder / "checkpoints" / "latest").read_text() == "step_00000003\n"
            assert len(tail) == 3
            assert len(lines(folder / "abandoned" / "1" / "metrics.jsonl")) == 7
            assert saved_steps(folder / "abandoned" / "1") == [6, 9]
        assert not (folder / "rewind.json").exists()
        if status == 0:
            break
    statuses, lineages = zip(*outcomes, strict=True)
    assert statuses == (DEAD,) * (len(outcomes) - 1) + (0,)
    assert list(lineages) == sorted(lineages), "from some operation on the rewind is finished by the next command"
    assert lineages.count(0) > 5
    assert lineages.count(1) > 20


def test_journal_without_a_record_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = run_of_ten(tmp_path)

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lineage, "_carry_out", die)
    with pytest.raises(KeyboardInterrupt):
        interrupted.rewind(6)
    (tmp_path / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"rewind\.json is there, but run\.json is not"):
        record_of(tmp_path, store_of(tmp_path))
