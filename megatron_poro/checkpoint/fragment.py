"""What one process holds of a tensor, in coordinates of the full tensor, as torch's distributed checkpoint wants it.

ZeRO cuts a stage's flat fp32 partition at arbitrary places, so a process holds a flat range of a slice of a tensor. A
flat range of a row-major matrix is at most three rectangles: the tail of a row, whole rows, the head of a row. Each
rectangle, moved by the slice's origin, is one chunk of the full tensor; that is all torch needs to write it, and to
read it back into any other cut. A checkpoint made of such chunks has no layout.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from megatron_poro.engine.engine import Fragment, FragmentKind
from megatron_poro.parallel.agreement import World


class Rectangle(NamedTuple):
    """A box inside a tensor whose elements are consecutive in a flat range.

    Attributes:
        offsets: coordinates of its first element, one per dim.
        sizes: its extent, one per dim.
        begin: position of its first element in the flat range.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    begin: int


class Piece(NamedTuple):
    """One chunk of a tensor: where it lies in the full tensor, and how to get at its elements.

    Attributes:
        offsets: coordinates of its first element in the full tensor.
        sizes: its extent.
        data: returns the elements in the shape ``sizes``. For reading from a checkpoint it must return a view of the
            memory to fill; for writing it may make the tensor on demand, and it is freed once written.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    data: Callable[[], Tensor]


class ChunkedTensor(torch.Tensor):
    """Some chunks of a tensor that may exist nowhere as a whole; holds no memory and computes nothing.

    Source: the three methods are the protocol by which ``torch.distributed.checkpoint`` handles ``DTensor``
    (``planner_helpers._create_write_items`` and ``_create_chunk_list``, ``utils.find_tensor_shard``).
    """

    pieces: tuple[Piece, ...]

    @staticmethod
    def __new__(cls, full_shape: Sequence[int], pieces: Iterable[Piece]) -> "ChunkedTensor":
        tensor: ChunkedTensor = torch.Tensor._make_wrapper_subclass(cls, torch.Size(full_shape), dtype=torch.float32)
        tensor.pieces = tuple(pieces)
        return tensor

    def __init__(self, full_shape: Sequence[int], pieces: Iterable[Piece]) -> None:
        super().__init__()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotImplementedError(f"a ChunkedTensor only describes chunks, it cannot compute {func}")

    @property
    def num_elements_held(self) -> int:
        """Elements in the chunks, not in the full tensor."""
        return sum(math.prod(piece.sizes) for piece in self.pieces)

    def __create_write_items__(self, key: str, tensor: "ChunkedTensor") -> list[WriteItem]:
        properties = TensorProperties(dtype=torch.float32)
        return [
            WriteItem(
                index=MetadataIndex(key, piece.offsets, index),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for index, (piece, chunk) in enumerate(zip(self.pieces, self.__create_chunk_list__(), strict=True))
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes)) for piece in self.pieces]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        # The hint is exact when reading. When writing, the coordinator has replaced it by the position among all
        # processes' chunks, and the chunk is found by its place.
        if index.index is not None and index.index < len(self.pieces):
            hinted = self.pieces[index.index]
            if torch.Size(hinted.offsets) == index.offset:
                return hinted.data()
        for piece in self.pieces:
            if torch.Size(piece.offsets) == index.offset:
                return piece.data()
        raise KeyError(f"no chunk of {index.fqn} begins at {index.offset}")


def rectangles(shape: Sequence[int], start: int, count: int) -> list[Rectangle]:
    """Cuts a flat range of a row-major tensor into as few boxes as its ends allow.

    At most ``2 * dims - 1`` boxes: one for a vector or a scalar, three for a matrix.

    Args:
        shape: the tensor's shape.
        start: first element of the range.
        count: number of elements.

    >>> rectangles((3, 4), 2, 7)
    [Rectangle(offsets=(0, 2), sizes=(1, 2), begin=0), Rectangle(offsets=(1, 0), sizes=(1, 4), begin=2), \
Rectangle(offsets=(2, 0), sizes=(1, 1), begin=6)]
    """
    total = math.prod(shape)
    assert 0 <= start <= start + count <= total, f"[{start}, {start + count}) leaves a tensor of {total} elements"
    if not shape:
        return [Rectangle((), (), 0)] * count
    # strides[dim]: elements in one step along dim, that is in one slab of all the dims after it
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    boxes = []
    position, end = start, start + count
    while position < end:
        offsets = tuple(position // stride % size for stride, size in zip(strides, shape, strict=True))
        # the outermost dim along which whole slabs begin here and fit
        dim = next(d for d, stride in enumerate(strides) if position % stride == 0 and end - position >= stride)
        slabs = min((end - position) // strides[dim], shape[dim] - offsets[dim])
        sizes = (1,) * dim + (slabs,) + tuple(shape[dim + 1 :])
        boxes.append(Rectangle(offsets, sizes, position - start))
        position += slabs * strides[dim]
    return boxes


def tensor_key(kind: FragmentKind, name: str) -> str:
    """The name of a value in a checkpoint: ``master.blocks.7.mlp.up.weight``."""
    return f"{kind.value}.{name}"


def split_key(key: str) -> tuple[FragmentKind, str]:
    """The inverse of :func:`tensor_key`."""
    kind, _, name = key.partition(".")
    return FragmentKind(kind), name


def chunked_tensors(fragments: Iterable[Fragment]) -> dict[str, ChunkedTensor]:
    """The fragments of one process by key, ready to be written or filled; empty ones are left out."""
    shapes: dict[str, tuple[int, ...]] = {}
    pieces: dict[str, list[Piece]] = {}
    for fragment in fragments:
        if fragment.flat.numel() == 0:
            continue
        key = tensor_key(fragment.kind, fragment.name)
        shape = shapes.setdefault(key, fragment.shard.full_shape)
        assert shape == fragment.shard.full_shape, f"{key} is {shape} and {fragment.shard.full_shape} in one process"
        pieces.setdefault(key, []).extend(_pieces(fragment))
    return {key: ChunkedTensor(shapes[key], pieces[key]) for key in pieces}


def decayed_names(fragments: Iterable[Fragment], world: World) -> list[str]:
    """Names of the parameters that weight decay applies to, sorted. All processes call it, each with what it holds."""
    mine = {fragment.name for fragment in fragments if fragment.is_decayed}
    return sorted(set().union(*world.gather(mine)))


def _pieces(fragment: Fragment) -> list[Piece]:
    """The chunks of the full tensor that a fragment is made of, as views of its storage."""
    flat, shard = fragment.flat, fragment.shard
    assert flat.dtype == torch.float32, f"{fragment.name} is {flat.dtype}"
    assert flat.dim() == 1, f"{fragment.name} is not flat: {flat.shape}"
    found = []
    for box in rectangles(shard.shape, fragment.start, flat.numel()):
        offsets = tuple(a + b for a, b in zip(box.offsets, shard.origin, strict=True))
        part = flat.narrow(0, box.begin, math.prod(box.sizes))
        found.append(Piece(offsets, box.sizes, partial(part.view, box.sizes)))
    return found
