"""Rows of a saved tensor, against torch's own loader: every cut, every chunk; what is no plain tensor is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_poro.checkpoint.fragment import ChunkedTensor, Piece
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.rows import TensorRows
from megatron_poro.checkpoint.saving import write_checkpoint
from megatron_poro.checkpoint.state import RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.errors import CheckpointError
from megatron_poro.parallel.agreement import World
from megatron_poro.parallel.topology import Topology

GENERATOR = torch.Generator().manual_seed(11)
VALUES = {
    "vector": torch.randn(23, generator=GENERATOR),
    "matrix": torch.randn(12, 9, generator=GENERATOR),
    "cube": torch.randn(4, 5, 6, generator=GENERATOR),
}
# boxes that tile each tensor: cut by rows, by columns, into unequal corners
BOXES: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "vector": [((0,), (7,)), ((7,), (1,)), ((8,), (15,))],
    "matrix": [((0, 0), (5, 9)), ((5, 0), (7, 4)), ((5, 4), (3, 5)), ((8, 4), (4, 5))],
    "cube": [((0, 0, 0), (4, 2, 6)), ((0, 2, 0), (1, 3, 6)), ((1, 2, 0), (3, 3, 1)), ((1, 2, 1), (3, 3, 5))],
}


def piece(name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Piece:
    box = tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
    return Piece(offsets, sizes, lambda: VALUES[name][box].clone())


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CheckpointReader:
    tensors = {
        f"master.{name}": ChunkedTensor(VALUES[name].shape, [piece(name, *box) for box in boxes])
        for name, boxes in BOXES.items()
    }
    state = RunState(
        step=1,
        consumed_samples=1,
        consumed_tokens=1,
        optimizer_step=1,
        config="",
        identity={},
        topology=Topology(),
        tokenizer_fingerprint="",
    )
    store = CheckpointStore(tmp_path_factory.mktemp("checkpoints"))
    return CheckpointReader(write_checkpoint(store, tensors, state, world=World()))


@pytest.mark.parametrize("name", list(VALUES))
def test_any_rows_are_those_of_the_tensor(reader: CheckpointReader, name: str) -> None:
    rows = TensorRows(reader, name)
    assert rows.shape == VALUES[name].shape
    assert torch.equal(reader.tensor(name), VALUES[name])  # torch's own loader agrees
    for begin in range(rows.shape[0]):
        for end in range(begin, rows.shape[0] + 1):
            assert torch.equal(rows.read(begin, end), VALUES[name][begin:end])


def test_a_tensor_that_is_not_there_is_named(reader: CheckpointReader) -> None:
    with pytest.raises(CheckpointError, match=r"has no master\.other\."):
        TensorRows(reader, "other")


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (
            torch.randn(9, 12).t(),
            r"size=\(12, 9\), stride=\(1, 12\)\), not \(12, 9\) contiguous",
        ),
        (torch.randn(12, 9, dtype=torch.float64), "torch.DoubleStorage is not a part of an fp32 tensor"),
        (torch.randn(9, 12), r"size=\(9, 12\), stride=\(12, 1\)\), not \(12, 9\) contiguous"),
        (torch.randn(13, 9)[1:], "offset 9 in its storage"),
        ([torch.randn(12, 9)], r"is \[_Strided.*, not \(12, 9\) contiguous"),
        (Path("x"), "is not a part of an fp32 tensor"),
    ],
)
def test_a_chunk_that_torch_would_read_otherwise_is_refused(tmp_path: Path, tensor: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        TensorRows(reader_of(tmp_path / "chunk", tensor), "matrix").read(0, 1)


@pytest.mark.parametrize("kept", [0, 100, 700])
def test_an_archive_that_is_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    damaged = reader_of(tmp_path / "chunk", VALUES["matrix"])
    (tmp_path / "chunk").write_bytes((tmp_path / "chunk").read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="a chunk of master.matrix in .* cannot be read"):
        TensorRows(damaged, "matrix").read(0, 1)


def test_a_chunk_whose_file_shrinks_later_is_refused(tmp_path: Path) -> None:
    rows = TensorRows(reader_of(tmp_path / "chunk", VALUES["matrix"]), "matrix")
    assert torch.equal(rows.read(0, 12), VALUES["matrix"])
    (tmp_path / "chunk").write_bytes(b"")
    with pytest.raises(CheckpointError, match="chunk ends before the tensor that it holds"):
        rows.read(0, 12)


def reader_of(path: Path, saved: Any) -> Any:
    """As much of a reader as is asked, over one file with whatever was given to ``torch.save``."""
    torch.save(saved, path)
    chunk = type("Chunk", (), {"offsets": torch.Size((0, 0)), "sizes": torch.Size((12, 9))})()
    stored = type("Stored", (), {"relative_path": path.name, "offset": 0, "length": path.stat().st_size})()
    index = type("Index", (), {})()
    index.state_dict_metadata = {"master.matrix": type("Entry", (), {"chunks": [chunk]})()}
    index.storage_data = {MetadataIndex("master.matrix", chunk.offsets): stored}

    @dataclasses.dataclass
    class Reader:
        path: Path
        index: Any
        tensors: Any

    from megatron_poro.engine.engine import FragmentKind

    return Reader(path.parent, index, {(FragmentKind.MASTER, "matrix"): (12, 9)})
