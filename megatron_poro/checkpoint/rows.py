"""Rows of a saved tensor, read where they lie in the files: no copy of a chunk, no more memory than is asked for.

Torch's own loader reads a whole chunk, copies it out of its archive, and then copies the part that is wanted. Here the
place of a chunk's numbers is looked up once, and any rows of it are read from there. A chunk is what ``torch.save``
made of one contiguous fp32 tensor: a zip archive whose entry ``data/0`` holds the numbers, not compressed, and whose
``data.pkl`` says how they are laid out. Whatever else is found there is refused.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from megatron_poro.checkpoint.fragment import tensor_key
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.engine.engine import FragmentKind
from megatron_poro.errors import CheckpointError

_ITEM_BYTES = 4
_LOCAL_HEADER_BYTES = 30


class TensorRows:
    """One tensor of a checkpoint.

    Attributes:
        shape: of the full tensor; a row is what follows the first dim.
    """

    def __init__(self, reader: CheckpointReader, name: str, kind: FragmentKind = FragmentKind.MASTER) -> None:
        """Reads nothing but the checkpoint's index.

        Raises:
            CheckpointError: if the checkpoint has no such tensor.
        """
        if (kind, name) not in reader.tensors:
            raise CheckpointError(f"checkpoint {reader.path} has no {tensor_key(kind, name)}.")
        self.shape = reader.tensors[kind, name]
        self._key = tensor_key(kind, name)
        self._reader = reader

    def read(self, begin: int, end: int) -> Tensor:
        """Rows ``begin`` to ``end`` in fp32, on the host, in memory of their own.

        Raises:
            CheckpointError: if a chunk is not what its checkpoint says.
            OSError: if the disk refuses.
        """
        rows = torch.empty((end - begin, *self.shape[1:]), dtype=torch.float32)
        for chunk in self._chunks:
            first, last = max(begin, chunk.offsets[0]), min(end, chunk.offsets[0] + chunk.sizes[0])
            if first < last:
                whole_rows = chunk.sizes[1:] == self.shape[1:]
                into = rows[first - begin : last - begin]
                part = into if whole_rows else torch.empty((last - first, *chunk.sizes[1:]), dtype=torch.float32)
                chunk.read_into(part, first - chunk.offsets[0])
                if not whole_rows:
                    inner = zip(chunk.offsets[1:], chunk.sizes[1:], strict=True)
                    box = [slice(None), *(slice(offset, offset + size) for offset, size in inner)]
                    into[tuple(box)] = part
        return rows

    @cached_property
    def _chunks(self) -> list["_Chunk"]:
        index = self._reader.index
        found = []
        for saved in index.state_dict_metadata[self._key].chunks:  # type: ignore[union-attr]
            stored = index.storage_data[MetadataIndex(self._key, saved.offsets)]
            archive = _Archive(self._reader.path / stored.relative_path, stored.offset, stored.length)
            found.append(_Chunk.locate(archive, saved, self._key))
        return found


class _Archive(NamedTuple):
    """A zip archive inside a file."""

    path: Path
    offset: int
    length: int


class _Chunk(NamedTuple):
    """A box of a tensor; its numbers lie one after the other in a file, row by row."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    position: int

    @classmethod
    def locate(cls, archive: _Archive, saved: ChunkStorageMetadata, key: str) -> "_Chunk":
        """Finds the numbers of a chunk."""
        sizes = tuple(saved.sizes)
        try:
            with archive.path.open("rb", buffering=0) as file, zipfile.ZipFile(_View(file, archive)) as opened:
                entries = {entry.filename.partition("/")[2]: entry for entry in opened.infolist()}
                layout = _Layout(io.BytesIO(opened.read(entries["data.pkl"]))).load()
                data = entries["data/0"]
                is_plain = data.compress_type == zipfile.ZIP_STORED and opened.read(entries["byteorder"]) == b"little"
                file.seek(archive.offset + data.header_offset)
                header = file.read(_LOCAL_HEADER_BYTES)
        except (KeyError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(f"a chunk of {key} in {archive.path} cannot be read ({error}).") from error
        if not is_plain or not isinstance(layout, _Strided) or not layout.is_contiguous(sizes):
            raise CheckpointError(
                f"a chunk of {key} in {archive.path} is {layout}, not {sizes} contiguous numbers in fp32: it was not "
                "written by this project."
            )
        # names and extra fields are repeated before the data, and torch pads there until the data is aligned
        skip = sum(int.from_bytes(header[place : place + 2], "little") for place in (26, 28))
        position = archive.offset + data.header_offset + _LOCAL_HEADER_BYTES + skip
        return cls(tuple(saved.offsets), sizes, archive.path, position)

    def read_into(self, part: Tensor, row: int) -> None:
        """Fills a contiguous tensor with the chunk's rows from ``row`` on."""
        view = part.view(-1).view(torch.uint8).numpy().data
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.position + row * math.prod(self.sizes[1:]) * _ITEM_BYTES)
            filled = 0
            while filled < len(view):
                count = file.readinto(view[filled:])
                if not count:
                    raise CheckpointError(f"{self.path} ends before the tensor that it holds.")
                filled += count


class _Strided(NamedTuple):
    """What ``data.pkl`` says of an fp32 tensor that begins where its storage does."""

    elements: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def is_contiguous(self, sizes: tuple[int, ...]) -> bool:
        """Whether it has these sizes, row by row, and fills its storage; the stride of a single row says nothing."""
        wanted = (math.prod(sizes[dim + 1 :]) for dim in range(len(sizes)))
        strided = zip(self.size, self.stride, wanted, strict=True)
        return (self.elements, self.size) == (math.prod(sizes), sizes) and all(
            size == 1 or stride == step for size, stride, step in strided
        )


class _Layout(pickle.Unpickler):
    """Reads how a tensor is laid out, without the tensor; knows three names and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _laid_out,
            ("torch", "FloatStorage"): float,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not a part of an fp32 tensor")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        _, _, key, _, elements = pid
        if key != "0":
            raise pickle.UnpicklingError(f"storage {key}")
        return elements


def _laid_out(elements: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Strided:
    if offset:
        raise pickle.UnpicklingError(f"offset {offset} in its storage")
    return _Strided(elements, tuple(size), tuple(stride))


class _View(io.RawIOBase):
    """An archive as a file of its own."""

    def __init__(self, file: BinaryIO | io.RawIOBase, archive: _Archive) -> None:
        super().__init__()
        self._file, self._archive, self._position = file, archive, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._archive.length}[whence]
        self._position = begin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._archive.length - self._position)]
        self._file.seek(self._archive.offset + self._position)
        count = self._file.readinto(view) or 0  # type: ignore[union-attr]
        self._position += count
        return count
