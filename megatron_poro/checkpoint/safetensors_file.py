"""Writing a safetensors file one tensor at a time: the header is known before the first tensor is read.

The format is eight bytes with the length of a JSON header, the header, and the tensors' bytes one after the other. The
library's own writer wants every tensor of a file in memory at once.

Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

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
    path: Path, entries: Sequence[TensorEntry], read: Callable[[str], Tensor], *, dtype: torch.dtype
) -> int:
    """Writes a file; returns its size in bytes.

    Args:
        path: the file.
        entries: its tensors, in order.
        read: gives a tensor by name, on the host, in ``dtype``; called once for each, and the tensor is freed after.
        dtype: format of all tensors.
    """
    with path.open("wb") as file:
        file.write(_header(entries, dtype))
        for entry in entries:
            tensor = read(entry.name)
            assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, dtype), (
                f"{entry} is {tensor.shape} {tensor.dtype}"
            )
            # flat first: a scalar has no dimension to reinterpret
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            del tensor
        return file.tell()


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
