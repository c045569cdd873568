"""One process saves and loads: values, room, damage, and death at every moment of a save."""

import errno
import math
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.resuming import load, resume
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.state import TOKENIZER_FOLDER, RunState, software_versions
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.engine.engine import Fragment, FragmentKind
from megatron_poro.errors import CheckpointError
from megatron_poro.parallel.shards import ShardSpec
from megatron_poro.tokenizer.bytes import byte_tokenizer
from tests.support.deaths import die_at, in_child
from tests.unit.checkpoint.fake_engine import CONFIG, LAYERS, FakeEngine, full_tensor, run_state, snapshot

FINGERPRINT = "ab" * 32


def load_newest(store: CheckpointStore) -> tuple[int, str]:
    """Step and salt of the newest checkpoint after checking each of its bits."""
    engine = FakeEngine(filled=False)
    state = resume(store, engine, config=CONFIG, tokenizer_fingerprint=FINGERPRINT)
    assert state is not None
    salt = f"step {state.step}"
    assert engine.wrong_fragments(salt) == []
    return state.step, salt


def save_step(store: CheckpointStore, step: int, **options: Any) -> Path:
    return save(store, FakeEngine(salt=f"step {step}"), run_state(step, **options))


def test_save_and_load_are_bitwise_and_give_back_the_state(tmp_path: Path) -> None:
    path = save(CheckpointStore(tmp_path), FakeEngine(), run_state(5, milestone="100k"))
    engine = FakeEngine(filled=False)
    state = load(path, engine, config=CONFIG, tokenizer_fingerprint=FINGERPRINT)
    assert engine.wrong_fragments() == []
    assert state == run_state(5, milestone="100k")
    assert engine.loaded_step == 5


def test_equal_states_make_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(CheckpointStore(tmp_path / name), FakeEngine(), run_state(5))
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_no_path_of_this_machine_is_in_a_checkpoint(tmp_path: Path) -> None:
    path = save(CheckpointStore(tmp_path), FakeEngine(), run_state(5))
    assert [name for name, content in snapshot(path).items() if str(tmp_path).encode() in content] == []


def test_a_run_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    assert resume(store, FakeEngine(), config=CONFIG, tokenizer_fingerprint=FINGERPRINT) is None


def test_the_reader_gives_each_full_tensor(tmp_path: Path) -> None:
    reader = CheckpointReader(save(CheckpointStore(tmp_path), FakeEngine(), run_state(5)))
    shapes = {name: shape for layer in LAYERS for name, (shape, _) in layer.items()}
    assert reader.shapes == shapes
    assert len(reader.tensors) == 3 * len(shapes)
    for kind, name in reader.tensors:
        assert torch.equal(reader.tensor(name, kind), full_tensor(kind, name, shapes[name]))
    assert {name: tuple(full.shape) for name, full in reader.masters()} == shapes
    with pytest.raises(CheckpointError, match=r"has no master.blocks.9.up.weight"):
        reader.tensor("blocks.9.up.weight")


def test_the_tokenizer_travels_in_the_checkpoint(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    path = save(CheckpointStore(tmp_path), FakeEngine(), run_state(5), tokenizer=tokenizer)
    assert type(tokenizer).load(path / TOKENIZER_FOLDER).fingerprint == tokenizer.fingerprint
    assert f"{TOKENIZER_FOLDER}/tokenizer.json" in manifest.read(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named_and_not_saved(tmp_path: Path, value: float) -> None:
    store, engine = CheckpointStore(tmp_path / "checkpoints"), FakeEngine()
    next(f for f in engine.fragments() if f.name == "blocks.1.cube" and f.kind is FragmentKind.EXP_AVG).flat[3] = value
    with pytest.raises(CheckpointError, match=r"exp_avg\.blocks\.1\.cube is not finite at step 5"):
        save(store, engine, run_state(5))
    assert not store.folder.exists()


def test_an_element_nobody_owns_is_a_bug_that_cannot_be_saved(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine._fragments[0] = Fragment(
        "embedding.weight", FragmentKind.MASTER, torch.zeros(139), 0, ShardSpec((20, 7)), is_owner=True
    )
    with pytest.raises(AssertionError, match=r"139 elements of master\.embedding\.weight, which is \(20, 7\)"):
        save(CheckpointStore(tmp_path), engine, run_state(5))


def test_the_newest_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    save_step(store, 1)
    data = save_step(store, 2) / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert load_newest(store) == (1, "step 1")
    assert "step_00000002 is damaged and is passed over: __0_0.distcp does not have the checksum" in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (save_step(store, 1) / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is valid \(step_00000001: meta.json is missing\)"):
        resume(store, FakeEngine(), config=CONFIG, tokenizer_fingerprint=FINGERPRINT)


def test_loading_a_damaged_folder_by_name_is_refused(tmp_path: Path) -> None:
    path = save_step(CheckpointStore(tmp_path), 1)
    (path / ".metadata").write_bytes(b"")
    for attempt in (
        lambda: load(path, FakeEngine(), config=CONFIG, tokenizer_fingerprint=FINGERPRINT),
        lambda: CheckpointReader(path),
    ):
        with pytest.raises(CheckpointError, match=r"is not a valid checkpoint: \.metadata has 0 bytes"):
            attempt()


def test_loading_a_folder_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = save_step(CheckpointStore(tmp_path), 1)
    content = bytearray((path / "meta.json").read_bytes())
    content[content.index(b"created") + 12] ^= 1  # of the right size, and still JSON
    (path / "meta.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="meta.json does not have the checksum of its manifest"):
        load(path, FakeEngine(), config=CONFIG, tokenizer_fingerprint=FINGERPRINT)


def test_old_checkpoints_are_removed_after_the_new_one_is_complete(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    for step in (1, 2, 3):
        save_step(store, step, milestone="1k" if step == 1 else None)
    assert store.steps() == [3, 1]


def test_no_room_is_said_with_both_numbers_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    save_step(store, 1)
    before = snapshot(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(CheckpointError, match=r"no room for checkpoint .*step_00000002: it needs 33\.\d MB and 1 MB"):
        save_step(store, 2)
    assert snapshot(tmp_path) == before


def test_the_room_asked_for_is_what_a_checkpoint_takes_at_most(tmp_path: Path) -> None:
    asked: list[int] = []

    class Noting(CheckpointStore):
        def stage(self, step: int, needed_bytes: int) -> Path:
            asked.append(needed_bytes)
            return super().stage(step, needed_bytes)

    path = save(Noting(tmp_path), FakeEngine(), run_state(5), tokenizer=byte_tokenizer())
    taken = sum(len(content) for content in snapshot(path).values())
    assert taken < asked[0] < taken + (33 << 20)


@pytest.mark.parametrize("limit", [0, 200, 5_000])
def test_a_disk_that_fills_up_during_the_save_leaves_the_old_checkpoint(tmp_path: Path, limit: int) -> None:
    """No file of the child can grow beyond the limit: the kernel fails its writes as a full disk does."""
    store = CheckpointStore(tmp_path / "checkpoints")
    save_step(store, 1)
    before = snapshot(store.folder)
    reading, writing = os.pipe()

    def fill_up() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(CheckpointError) as caught:
            save_step(store, 2)
        os.write(writing, str(caught.value).encode())

    assert in_child(fill_up) == 0
    said = os.read(reading, 10_000).decode()
    os.close(reading)
    os.close(writing)
    assert f"{store.path(2)} was not written: " in said
    assert "It needs 33." in said
    assert " are free. " in said
    assert snapshot(store.folder) == before
    assert load_newest(store) == (1, "step 1")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("phase", ["describe", "encode"])
def test_whatever_a_disk_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, phase: str
) -> None:
    store = CheckpointStore(tmp_path)
    save_step(store, 1)
    before = snapshot(tmp_path)

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    monkeypatch.setattr(manifest, phase, refuse)
    with pytest.raises(CheckpointError, match=f"was not written: {os.strerror(number)}. It needs"):
        save_step(store, 2)
    monkeypatch.undo()
    assert snapshot(tmp_path) == before


def test_every_file_and_folder_is_durable_before_the_rename_that_makes_it_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replays a power failure at each rename: what has not been synced by then could be lost."""
    synced: set[int] = set()
    sync, rename, replace = os.fsync, Path.rename, Path.replace

    def noting_sync(descriptor: int) -> None:
        sync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def checking_rename(path: Path, target: Path) -> Path:
        if path.is_dir():
            for entry in (path, *path.rglob("*")):
                assert entry.stat().st_ino in synced, f"{entry} is not durable when {path.name} is renamed"
        return rename(path, target)

    def checking_replace(path: Path, target: Path) -> Path:
        assert path.stat().st_ino in synced, f"{path} is not durable when it replaces {target.name}"
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(Path, "rename", checking_rename)
    monkeypatch.setattr(Path, "replace", checking_replace)
    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, FakeEngine(), run_state(1), tokenizer=byte_tokenizer())
    assert store.folder.stat().st_ino in synced
    assert tmp_path.stat().st_ino in synced


def test_death_at_any_moment_of_a_save_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    """Exhaustive: one save for each file operation of a save, killed just before it."""
    outcomes = []
    save_step(CheckpointStore(tmp_path / "before"), 1)
    (tmp_path / "before" / "step_00000000.tmp").mkdir()
    for event in range(1000):
        store = CheckpointStore(tmp_path / str(event), keep_last=1)
        shutil.copytree(tmp_path / "before", store.folder)

        def save_and_die(store: CheckpointStore = store, event: int = event) -> None:
            die_at(event, store.folder)
            save_step(store, 2)

        status = in_child(save_and_die)
        step, _ = load_newest(store)
        outcomes.append((status, step))
        assert manifest.problems(save_step(store, 3)) == []  # and nothing stands in the way of the next one
        assert sorted(path.name for path in store.folder.iterdir()) == ["latest", "step_00000003"]
        if status == 0:
            break
    deaths = [step for status, step in outcomes if status == 9]
    assert len(deaths) == len(outcomes) - 1 > 20
    assert deaths == sorted(deaths)
    assert set(deaths) == {1, 2}  # some died before the commit, some after it
    assert outcomes[-1] == (0, 2)


def test_the_state_reads_back_from_its_text(tmp_path: Path) -> None:
    state = run_state(5, milestone="100B")
    (tmp_path / "meta.json").write_bytes(state.encode())
    assert RunState.read(tmp_path / "meta.json") == state


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "step": 3, "topology": {}}'])
def test_a_damaged_state_is_a_named_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"meta.json is damaged"):
        RunState.read(tmp_path / "meta.json")


def test_a_state_of_a_later_format_is_refused_and_of_a_later_release_is_read(tmp_path: Path) -> None:
    text = run_state(5).encode().decode()
    (tmp_path / "meta.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="has format 2, this release reads 1"):
        RunState.read(tmp_path / "meta.json")
    (tmp_path / "meta.json").write_text(text.replace('"format": 1', '"format": 1, "a_new_field": 0'))
    assert RunState.read(tmp_path / "meta.json") == run_state(5)


def test_the_state_names_the_software_that_wrote_it() -> None:
    versions = software_versions()
    assert set(versions) == {"python", "megatron_poro", "torch", "deepspeed"}
    assert versions["torch"] == torch.__version__
