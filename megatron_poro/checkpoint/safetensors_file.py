"""Writing a safetensors file piece by piece: the header is known before the first tensor is read.

The format is eight bytes with the length of a JSON header, the header, and the tensors' bytes one after the other. The
library's own writer wants every tensor of a file in memory at once.

Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_poro.checkpoint.hashed_file import HashedFile
from megatron_poro.checkpoint.manifest import FileEntry

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_ALIGNMENT = 8


class TensorEntry(NamedTuple):
    """A tensor to be written: its name in the file and its shape."""

    name: str
    shape: tuple[int, ...]


def tensor_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * dtype.itemsize


def write_safetensors(
    path: Path, entries: Sequence[TensorEntry], blocks: Iterator[Tensor], *, dtype: torch.dtype
) -> FileEntry:
    """Writes a file and makes it durable; returns its size and checksum.

    Args:
        path: the file.
        entries: its tensors, in order.
        blocks: their elements in this order, on the host, in ``dtype``; no block holds elements of two tensors. Each is
            let go of before the next is asked for.
        dtype: format of all tensors.

    Raises:
        OSError: if the disk refuses.
    """
    with HashedFile(path) as file:
        file.write(_header(entries, dtype))
        for entry in entries:
            missing = math.prod(entry.shape)
            while missing > 0:
                block = next(blocks)
                missing -= block.numel()
                assert block.dtype is dtype, f"{entry.name} is {block.dtype}, not {dtype}"
                assert missing >= 0, f"{-missing} elements too many for {entry}"
                # flat first: a scalar has no dimension to reinterpret
                file.write(block.contiguous().view(-1).view(torch.uint8).numpy().data)
                del block
    return file.entry


def _header(entries: Sequence[TensorEntry], dtype: torch.dtype) -> bytes:
    """Length and JSON, padded so that the tensors are aligned."""
    # transformers 4.36 refuses a file that does not say which library's tensors it holds
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in entries:
        end = begin + tensor_bytes(shape, dtype)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
