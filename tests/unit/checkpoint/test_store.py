"""The folder of checkpoints, without tensors: staging, commit, what is kept, what counts as valid."""

import errno
import re
import shutil
from pathlib import Path

import pytest

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.state import META_NAME
from megatron_poro.checkpoint.store import CheckpointStore, step_name, step_of, write_durably
from megatron_poro.errors import CheckpointError
from tests.support.faulty_disk import FaultyDisk, refuse
from tests.unit.checkpoint.fake_engine import run_state


def write(store: CheckpointStore, step: int, *, milestone: str | None = None) -> Path:
    """A checkpoint whose only tensor is a file of some bytes."""
    staging = store.stage(step, 100)
    (staging / "data").write_bytes(bytes([step]) * 50)
    (staging / META_NAME).write_bytes(run_state(step, milestone=milestone).encode())
    return store.commit(staging, {name: manifest.describe(staging / name) for name in ("data", META_NAME)})


def test_a_committed_step_is_valid_and_latest_names_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.newest_valid() == (None, ())
    path = write(store, 144)
    assert path.name == "step_00000144"
    assert manifest.problems(path) == []
    assert store.newest_valid() == (path, ())
    assert (store.folder / "latest").read_text() == "step_00000144\n"
    assert sorted(entry.name for entry in store.folder.iterdir()) == ["latest", "step_00000144"]


def test_a_step_appears_whole_by_one_rename(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with FaultyDisk(tmp_path) as disk:
        path = write(store, 5)
    places = [(operation.kind, Path(operation.target or operation.path)) for operation in disk.operations]
    assert [kind for kind, place in places if path in (place, *place.parents)] == ["rename"]


@pytest.mark.parametrize("operation", range(4))
def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, operation: int) -> None:
    path = tmp_path / "latest"
    write_durably(path, b"old")
    with pytest.raises(OSError, match="No space left"), FaultyDisk(tmp_path, at=operation, fault=refuse(errno.ENOSPC)):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"


def test_steps_are_numbers_newest_first_and_other_folders_are_not_steps(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for name in ("step_00000009", "step_00000010", "step_00000011.tmp", "step_7", "step_00000008.damaged", "other"):
        (tmp_path / name).mkdir()
    assert store.steps() == [10, 9]


def test_step_names_sort_as_numbers_and_read_back() -> None:
    assert step_name(238418) == "step_00238418"
    assert step_of(Path(step_name(123456789))) == 123456789
    assert step_of(Path("step_000000001")) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "data").unlink(), "data is missing"),
        (lambda path: (path / "data").write_bytes(b"x" * 49), "data has 49 bytes, its manifest says 50"),
        (lambda path: (path / "data").write_bytes(b"x" * 50), "data does not have the checksum of its manifest"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), "it does not parse"),
        (lambda path: (path / "manifest.json").write_text("[]"), "it does not parse"),
        (
            lambda path: (path / "manifest.json").write_text(
                (path / "manifest.json").read_text().replace('"bytes": 50', '"bytes": 51')
            ),
            "does not agree with its own checksum",
        ),
    ],
)
def test_a_damaged_newest_is_named_and_passed_over(tmp_path: Path, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    store = CheckpointStore(tmp_path)
    good, bad = write(store, 1), write(store, 2)
    damage(bad)
    path, damaged = store.newest_valid()
    assert path == good
    (one,) = damaged
    assert one.path == bad
    assert said in str(one)


def test_every_single_bit_flip_of_every_file_is_detected_and_named(tmp_path: Path) -> None:
    path = write(CheckpointStore(tmp_path), 3)
    for name in ("data", META_NAME, manifest.MANIFEST_NAME):
        content = bytearray((path / name).read_bytes())
        for position in range(0, len(content), 7):
            content[position] ^= 1 << (position % 8)
            (path / name).write_bytes(content)
            (problem,) = manifest.problems(path)
            assert problem.startswith(name), (name, position, problem)
            content[position] ^= 1 << (position % 8)
        (path / name).write_bytes(content)
    assert manifest.problems(path) == []


def test_without_checksums_only_sizes_are_compared(tmp_path: Path) -> None:
    path = write(CheckpointStore(tmp_path), 3)
    (path / "data").write_bytes(b"x" * 50)
    assert manifest.problems(path, checksums=False) == []


def test_processes_share_the_files_between_them(tmp_path: Path) -> None:
    path = write(CheckpointStore(tmp_path), 3)
    (path / "data").write_bytes(b"x" * 50)
    found = [manifest.problems(path, rank=rank, size=2) for rank in range(2)]
    assert sorted(len(part) for part in found) == [0, 1]


def test_a_manifest_of_another_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = write(CheckpointStore(tmp_path), 3)
    record = (path / manifest.MANIFEST_NAME).read_text().replace('"format": 1', '"format": 9')
    (path / manifest.MANIFEST_NAME).write_text(record)
    assert manifest.problems(path) == [f"manifest.json of {path} has format 9, this release reads 1."]


def test_a_valid_step_is_never_overwritten(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    write(store, 5)
    with pytest.raises(CheckpointError, match="valid checkpoint already and is not overwritten"):
        store.stage(5, 100)


def test_a_damaged_step_gives_way_to_a_new_one_and_is_kept_aside(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (write(store, 5) / "data").unlink()
    path = write(store, 5)
    assert manifest.problems(path) == []
    assert (tmp_path / "step_00000005.damaged" / META_NAME).exists()
    assert store.steps() == [5]


def test_staging_clears_what_interrupted_saves_and_removals_left(tmp_path: Path) -> None:
    for name in ("step_00000004.tmp", "step_00000001.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"x")
    staging = CheckpointStore(tmp_path).stage(6, 100)
    assert list(tmp_path.iterdir()) == [staging]
    assert re.fullmatch(r"step_00000006\.[0-9a-f]{8}\.tmp", staging.name)


def test_no_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    write(store, 1)
    with pytest.raises(CheckpointError, match=r"no room for checkpoint .*step_00000002: it needs 1 EB and .* are free"):
        store.stage(2, 10**18)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step_00000001"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"step_00000001 cannot be written: Not a directory .*needs 100 B"):
        CheckpointStore(tmp_path / "file" / "checkpoints").stage(1, 100)


def test_the_newest_and_all_milestones_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in range(1, 7):
        write(store, step, milestone="100B" if step == 2 else None)
        store.retain()
    assert store.steps() == [6, 5, 2]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "latest",
        "step_00000002",
        "step_00000005",
        "step_00000006",
    ]


def test_incomplete_steps_neither_count_nor_are_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    for step in (1, 2, 3):
        write(store, step)
    (store.path(3) / "data").unlink()
    assert store.retain() == [store.path(1)]  # 2 is the newest complete one
    assert store.steps() == [3, 2]


@pytest.mark.parametrize("keep_last", [0, -1])
def test_the_last_valid_checkpoint_is_never_removed(tmp_path: Path, keep_last: int) -> None:
    store = CheckpointStore(tmp_path, keep_last=keep_last)
    write(store, 1)
    assert store.retain() == []
    assert store.steps() == [1]


def test_keeping_none_keeps_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=0)
    write(store, 1), write(store, 2)
    assert store.retain(proven=2) == [store.path(1)]


def test_a_checkpoint_whose_meta_cannot_be_read_is_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    staging = store.stage(1, 10)
    (staging / META_NAME).write_text("{}")
    store.commit(staging, {META_NAME: manifest.describe(staging / META_NAME)})
    write(store, 2)
    assert store.retain() == []


def test_a_removal_that_fails_is_a_warning_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    write(store, 1), write(store, 2)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert store.retain() == []
    assert "cannot remove old checkpoint" in caplog.text


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def test_nothing_is_removed_where_what_would_stay_is_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2, 3):
        write(store, step)
    for step in (2, 3):
        flip_a_bit(store.path(step) / "data")  # of the right size: only a checksum tells
    assert store.superfluous() == [1]
    assert store.retain() == []
    assert "none of the checkpoints in" in caplog.text
    assert store.newest_valid()[0] == store.path(1)


def test_one_valid_checkpoint_among_those_that_stay_is_enough(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2, 3):
        write(store, step)
    flip_a_bit(store.path(3) / "data")
    assert store.retain() == [store.path(1)]
    assert store.newest_valid()[0] == store.path(2)


def test_what_was_just_committed_needs_no_second_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    for step in (1, 2):
        write(store, step)
    monkeypatch.setattr(manifest, "describe", lambda _: pytest.fail("a file is read again"))
    assert store.retain(proven=2) == [store.path(1)]


def test_a_step_that_does_not_stay_proves_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    for step in (1, 2):
        write(store, step)
    flip_a_bit(store.path(2) / "data")
    assert store.retain(proven=1) == []


def test_the_holder_is_asked_before_anything_is_cleared_and_before_the_rename(tmp_path: Path) -> None:
    asked: list[list[str]] = []
    store = CheckpointStore(
        tmp_path, before_commit=lambda: asked.append(sorted(path.suffix for path in tmp_path.iterdir()))
    )
    (tmp_path / "step_00000001.left.tmp").mkdir()
    write(store, 2)
    assert asked == [[".tmp"], [".tmp"]]
    assert store.steps() == [2]
