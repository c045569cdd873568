"""Any layout in, any layout out: every ordered pair of layouts of up to four processes, bit for bit."""

from pathlib import Path

import pytest

from megatron_poro.checkpoint.resuming import resume
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.topology import Topology
from tests.support.ranks import run_ranks
from tests.unit.checkpoint.fake_engine import CONFIG, FakeEngine, run_state, snapshot

LAYOUTS = [
    Topology(tensor=tensor, pipeline=pipeline, data=data)
    for world in (1, 2, 3, 4)
    for tensor in (1, 2, 4)
    for pipeline in range(1, world + 1)
    for data in range(1, world + 1)
    if tensor * pipeline * data == world
]


def store_of(folder: Path, layout: Topology) -> CheckpointStore:
    return CheckpointStore(folder / str(layout).replace(" ", "_"))


def save_as(folder: Path, layout: Topology, salt: str = "") -> None:
    groups = ParallelGroups.create(layout)
    save(store_of(folder, layout), FakeEngine(groups, salt=salt), run_state(5, topology=layout))


def load_all(folder: Path, layout: Topology) -> dict[str, list[str]]:
    """Loads what every layout has saved; says what is wrong, by the layout that saved it."""
    groups = ParallelGroups.create(layout)
    wrong = {}
    for saved_by in LAYOUTS:
        engine = FakeEngine(groups, filled=False)
        state = resume(store_of(folder, saved_by), engine, config=CONFIG, tokenizer_fingerprint="ab" * 32)
        assert state is not None
        assert (state.step, state.topology, engine.loaded_step) == (5, saved_by, 5)
        wrong[str(saved_by)] = engine.wrong_fragments()
    return wrong


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for layout in LAYOUTS:
        run_ranks(save_as, folder, layout, world=layout.world_size)
    return folder


def test_the_layouts_are_all_that_four_processes_allow() -> None:
    # 1, 2 and 4 processes have 1, 3 and 6 layouts, 3 processes 2 more that do not cut tensors in three
    assert len(LAYOUTS) == 12


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_reads_every_layout_bit_for_bit(saved: Path, layout: Topology) -> None:
    for wrong in run_ranks(load_all, saved, layout, world=layout.world_size):
        assert wrong == {str(saved_by): [] for saved_by in LAYOUTS}


def load_and_save_again(folder: Path, layout: Topology, source: Topology, target: Path) -> None:
    engine = FakeEngine(ParallelGroups.create(layout), filled=False)
    resume(store_of(folder, source), engine, config=CONFIG, tokenizer_fingerprint="ab" * 32)
    save(CheckpointStore(target), engine, run_state(5, topology=layout))


def test_there_and_back_gives_the_same_files(saved: Path, tmp_path: Path) -> None:
    there, back = Topology(tensor=2, data=2), Topology(pipeline=3)
    run_ranks(load_and_save_again, saved, back, there, tmp_path / "middle", world=3)
    (tmp_path / "middle").rename(store_of(tmp_path, back).folder)
    run_ranks(load_and_save_again, tmp_path, there, back, tmp_path / "end", world=4)
    assert snapshot(tmp_path / "end") == snapshot(store_of(saved, there).folder)
