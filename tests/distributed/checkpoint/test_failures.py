"""What fails on one process fails on all, alike, and nobody waits for ever."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.resuming import resume
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.checkpoint.writing import WritePlan
from megatron_poro.errors import CheckpointError
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.topology import Topology
from tests.support.ranks import RankFailure, run_ranks
from tests.unit.checkpoint.fake_engine import CONFIG, FakeEngine, run_state, snapshot

LAYOUT = Topology(data=2)


def engine_here(*, filled: bool = True) -> FakeEngine:
    return FakeEngine(ParallelGroups.create(LAYOUT), filled=filled)


def failing(rank: int) -> Any:
    """Raises on one rank what a broken disk raises there."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(5, "Input/output error", f"disk of rank {rank}")

    return fail


def save_with_failure(folder: Path, phase: str, rank: int) -> str:
    store, engine = CheckpointStore(folder), engine_here()
    save(store, engine, run_state(1))
    world = engine.groups.world
    if world.rank == rank:
        owner = {"write": WritePlan, "describe": manifest, "write_index": WritePlan, "commit": CheckpointStore}[phase]
        setattr(owner, phase, failing(rank))
    try:
        save(store, engine, run_state(2))
    except CheckpointError as error:
        return str(error)
    return "saved"


@pytest.mark.parametrize(
    ("phase", "rank"), [("write", 0), ("write", 1), ("describe", 0), ("write_index", 0), ("commit", 0)]
)
def test_a_disk_that_fails_on_one_process_is_the_same_error_on_all(tmp_path: Path, phase: str, rank: int) -> None:
    first, second = run_ranks(save_with_failure, tmp_path, phase, rank, world=2)
    assert first == second
    assert "step_00000002 was not written: Input/output error. It needs 33" in first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_00000001"]


def save_nan_on(folder: Path, rank: int) -> str:
    engine = engine_here()
    if engine.groups.world.rank == rank:
        next(engine.fragments()).flat[0] = float("nan")
    try:
        save(CheckpointStore(folder), engine, run_state(1))
    except CheckpointError as error:
        return str(error)
    return "saved"


def test_a_nan_on_one_process_stops_the_save_on_all(tmp_path: Path) -> None:
    first, second = run_ranks(save_nan_on, tmp_path / "checkpoints", 1, world=2)
    assert first == second
    assert "is not finite at step 1" in first
    assert not (tmp_path / "checkpoints").exists()


def die_while_writing(folder: Path) -> None:
    store, engine = CheckpointStore(folder), engine_here()
    save(store, engine, run_state(1))
    if engine.groups.world.rank == 1:
        WritePlan.write = lambda *_: os._exit(9)  # type: ignore[method-assign]
    save(store, engine, run_state(2))


def load_newest(folder: Path) -> tuple[int, list[str]]:
    engine = engine_here(filled=False)
    state = resume(CheckpointStore(folder), engine, config=CONFIG, tokenizer_fingerprint="ab" * 32)
    assert state is not None
    return state.step, engine.wrong_fragments()


def test_a_process_that_dies_while_writing_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RankFailure):
        run_ranks(die_while_writing, tmp_path, world=2)
    assert [path.name for path in tmp_path.glob("*.tmp") if path.name.startswith("step_00000002.")]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".tmp") == ["latest", "step_00000001"]
    assert run_ranks(load_newest, tmp_path, world=2) == [(1, []), (1, [])]


def save_two(folder: Path) -> None:
    for step in (1, 2):
        save(CheckpointStore(folder), engine_here(), run_state(step))


def test_damage_that_one_process_finds_is_known_to_all(tmp_path: Path) -> None:
    run_ranks(save_two, tmp_path, world=2)
    for name in ("__0_0.distcp", "__0_1.distcp"):  # each process hashes one of the two
        path = tmp_path / "step_00000002" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert run_ranks(load_newest, tmp_path, world=2) == [(1, []), (1, [])]
        path.write_bytes(content)
    assert run_ranks(load_newest, tmp_path, world=2) == [(2, []), (2, [])]


def load_other_run(folder: Path) -> str:
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, hidden_size=16))
    try:
        resume(CheckpointStore(folder), engine_here(), config=config, tokenizer_fingerprint="ab" * 32)
    except CheckpointError as error:
        return str(error)
    return "loaded"


def test_a_refused_resume_is_refused_on_all(tmp_path: Path) -> None:
    run_ranks(save_two, tmp_path, world=2)
    before = snapshot(tmp_path)
    first, second = run_ranks(load_other_run, tmp_path, world=2)
    assert first == second
    assert "model.hidden_size was 8, is now 16" in first
    assert snapshot(tmp_path) == before


def owned_twice(folder: Path) -> str:
    engine = FakeEngine(ParallelGroups.create(Topology(tensor=2)))
    engine._fragments = [type(fragment)(**{**vars(fragment), "is_owner": True}) for fragment in engine.fragments()]
    try:
        save(CheckpointStore(folder), engine, run_state(1))
    except AssertionError as error:
        return str(error)
    return "saved"


def test_elements_that_two_processes_own_are_a_bug_that_cannot_be_saved(tmp_path: Path) -> None:
    for said in run_ranks(owned_twice, tmp_path, world=2):
        assert "14 elements of" in said
        assert "which is (7,), have an owner" in said
