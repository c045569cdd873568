"""Writing chunks of tensors in torch's format for distributed checkpoints: planned together, written alone.

Torch's own ``save`` plans, writes and collects in one collective call. Here the three are apart, so that the middle
one, which takes nearly all of the time, needs no other process and can run beside training. It also frees each chunk
once it is written and hashes a file while it writes it, where torch holds all chunks of a file until it is closed.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo  # the record that its index is of
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from megatron_poro.checkpoint.fragment import ChunkedTensor, split_key
from megatron_poro.checkpoint.hashed_file import HashedFile
from megatron_poro.checkpoint.manifest import FileEntry
from megatron_poro.engine.engine import FragmentKind
from megatron_poro.parallel.agreement import World

_BUFFER_BYTES = 1 << 20
"""Joins the dozens of small pieces that torch's serialisation makes of a small chunk; a large one passes it by."""


_MASTERS, _MOMENTS = 0, 1
"""Numbers of a process's files. What makes a model of a checkpoint reads and compares only the first, a third of it."""


class Written(NamedTuple):
    """What one process wrote.

    Attributes:
        chunks: where each of its chunks is, for the index.
        entries: size and checksum of its files, by name; empty if it owns nothing.
    """

    chunks: list[WriteResult]
    entries: dict[str, FileEntry]


class WritePlan:
    """Which chunks this process writes, and what the index of all processes will say. Made by :func:`plan_writing`."""

    def __init__(self, planner: DefaultSavePlanner, own: SavePlan, index: Metadata, *, rank: int) -> None:
        self._planner = planner
        self._index = index
        self._files: dict[str, list[WriteItem]] = {}
        for item in sorted(own.items, key=_file_number):
            self._files.setdefault(f"__{rank}_{_file_number(item)}.distcp", []).append(item)

    def write(self, folder: Path) -> Written:
        """Writes this process's chunks and makes their files durable. No other process is needed.

        Raises:
            OSError: if the disk refuses.
        """
        chunks, entries = [], {}
        for name, items in self._files.items():
            with HashedFile(folder / name) as file:
                stream = io.BufferedWriter(_Stream(file), _BUFFER_BYTES)
                for item in items:
                    begin = stream.tell()
                    self._write_chunk(item, stream)
                    length = stream.tell() - begin
                    chunks.append(WriteResult(item.index, length, _StorageInfo(name, begin, length)))
                stream.flush()
            entries[name] = file.entry
        return Written(chunks, entries)

    def _write_chunk(self, item: WriteItem, stream: IO[bytes]) -> None:
        """A call of its own, so that a chunk is gone when the next is made."""
        chunk = self._planner.resolve_data(item)
        assert isinstance(chunk, torch.Tensor), f"{item.index.fqn} is not a tensor"
        chunk = chunk.detach().cpu()
        if chunk.untyped_storage().nbytes() != chunk.nbytes:  # of a view torch would write all that it is a view of
            chunk = chunk.clone(memory_format=torch.contiguous_format)
        torch.save(chunk, stream)

    def write_index(self, folder: Path, written: Sequence[Written]) -> None:
        """Writes torch's record of which chunk is where, from what all processes wrote. One process calls it.

        Raises:
            OSError: if the disk refuses.
        """
        _IndexWriter(folder).finish(self._index, [one.chunks for one in written])


def plan_writing(tensors: Mapping[str, ChunkedTensor], *, world: World) -> WritePlan:
    """Agrees on who writes what. All processes call it, each with what it holds."""
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), is_coordinator=world.is_first)
    plans, index = planner.create_global_plan(world.gather(planner.create_local_plan()))
    own = planner.finish_plan(plans[world.rank])
    return WritePlan(planner, dataclasses.replace(own), index, rank=world.rank)


def _file_number(item: WriteItem) -> int:
    kind, _ = split_key(item.index.fqn)
    return _MASTERS if kind is FragmentKind.MASTER else _MOMENTS


class _Stream(io.RawIOBase):
    """A hashed file as a buffered writer wants to see one."""

    def __init__(self, file: HashedFile) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.size

    def write(self, content: Any) -> int:
        view = memoryview(content)
        self._file.write(view)
        return view.nbytes


class _IndexWriter(FileSystemWriter):
    """Torch's writer of the index without the path and the random number it notes: equal states make equal files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sync_files=False)

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()
