"""How much memory a load and a save take beside what the engine holds; measured on the process, in a child of its own.

Python's tracer does not see torch's memory, so these ask the kernel for the peak of the resident set.
"""

import ctypes
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from megatron_poro.checkpoint.resuming import load
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.engine.engine import Fragment, FragmentKind
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.shards import ShardSpec
from tests.support.deaths import in_child
from tests.unit.checkpoint.fake_engine import CONFIG, IdleEngine, run_state

MEBI = 1 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of malloc.h
ROWS, COLUMNS, TENSORS = 2048, 2048, 4
LARGEST = 4 * ROWS * COLUMNS
"""Bytes of one tensor; a checkpoint has three for each of ``TENSORS`` parameters."""

CONSTANT = 12 * MEBI
"""What a load takes whatever the size of the model: buffers of the threads that hash, torch's bookkeeping. Too small
for a second tensor."""


class WideEngine(IdleEngine):
    """Holds the first of ``parts`` equal slices of each of some large tensors."""

    def __init__(self, parts: int, *, rows: int = ROWS) -> None:
        self.groups = ParallelGroups.single()
        shard = ShardSpec((rows, COLUMNS), 1 if parts > 1 else None, 0, parts)
        size = rows * COLUMNS // parts
        self._fragments = [
            Fragment(f"blocks.{index}.weight", kind, torch.ones(size), 0, shard, is_owner=True)
            for index in range(TENSORS)
            for kind in FragmentKind
        ]

    def fragments(self) -> Iterator[Fragment]:
        yield from self._fragments

    def load_finished(self, optimizer_step: int) -> None:
        assert all(bool((fragment.flat == 1).all()) for fragment in self._fragments)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(CheckpointStore(tmp_path_factory.mktemp("saved")), WideEngine(1), run_state(1))


def peak_growth(first: Callable[[], object], then: Callable[[], object], note: Path) -> int:
    """By how many bytes the peak of the resident set grows in ``then``, in a forked process.

    ``first`` does the same on a small scale: what a process touches of its libraries the first time is not counted.
    """

    def body() -> None:
        # blocks of a mebibyte and more go back to the kernel when they are freed, whatever was freed and set before
        for setting, value in {_M_MMAP_MAX: 1 << 16, _M_MMAP_THRESHOLD: MEBI, _M_TRIM_THRESHOLD: MEBI}.items():
            assert ctypes.CDLL(None).mallopt(setting, value) == 1
        first()
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = _peak()
        then()
        note.write_bytes(pickle.dumps(_peak() - before))

    assert in_child(body) == 0
    growth: int = pickle.loads(note.read_bytes())
    return growth


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def loading(path: Path, engine: WideEngine) -> Callable[[], object]:
    return lambda: load(path, engine, config=CONFIG, tokenizer_fingerprint="ab" * 32)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_load_takes_its_own_part_the_largest_tensor_and_a_constant(saved: Path, tmp_path: Path, parts: int) -> None:
    """The part is there before the load begins; a quarter reads from chunks that are whole tensors."""
    small = save(CheckpointStore(tmp_path), WideEngine(1, rows=4), run_state(1))
    growth = peak_growth(
        loading(small, WideEngine(parts, rows=4)), loading(saved, WideEngine(parts)), tmp_path / "note"
    )
    assert growth < LARGEST + CONSTANT, f"{growth / MEBI:.0f} MiB beside the part of this process"


def test_a_save_takes_the_largest_tensor_and_a_constant(tmp_path: Path) -> None:
    def saving(step: int, engine: WideEngine) -> Callable[[], object]:
        return lambda: save(CheckpointStore(tmp_path / "checkpoints"), engine, run_state(step))

    growth = peak_growth(saving(1, WideEngine(1, rows=4)), saving(2, WideEngine(1)), tmp_path / "note")
    assert growth < LARGEST + CONSTANT, f"{growth / MEBI:.0f} MiB beside the part of this process"
