"""Torch's record of which chunk of which tensor is where, read without trusting it.

The record is a pickle, and a pickle may name anything to be called. This one is read by an unpickler that knows the
dozen names such a record consists of and refuses any other, so looking into a foreign checkpoint runs nothing of it.
The chunks themselves are read by torch with ``weights_only``.
"""

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, StorageMeta

from megatron_poro.errors import CheckpointError

INDEX_NAME = ".metadata"

_NAMES = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32"},
}


def read_index(folder: Path, files: Collection[str]) -> Metadata:
    """The record of a checkpoint.

    Args:
        folder: a step folder.
        files: the files that the checkpoint has by its manifest; no chunk may be anywhere else.

    Raises:
        CheckpointError: if it is not such a record, or leads out of the checkpoint.
    """
    path = folder / INDEX_NAME
    try:
        with path.open("rb") as file:
            index = _IndexUnpickler(file, path).load()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a damaged pickle fails in whatever way its bytes happen to mean
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}): use another checkpoint."
        ) from error
    if not isinstance(index, Metadata) or index.storage_data is None:
        raise CheckpointError(f"{path} is damaged: it is not an index of tensors. Use another checkpoint.")
    strangers = {stored.relative_path for stored in index.storage_data.values()} - set(files)
    if strangers:
        raise CheckpointError(f"{path} names {sorted(strangers)[0]}, which is no file of this checkpoint.")
    if index.storage_meta is None:
        index.storage_meta = StorageMeta()
    return index


class _IndexUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # by which some Pythons, 3.11.2 for one, name members of an enum
            return self._memory_format
        if name not in _NAMES.get(module, ()):
            raise self._refused(f"{module}.{name}")
        return super().find_class(module, name)

    def _memory_format(self, kind: Any, name: str) -> _MEM_FORMAT_ENCODING:
        """The only thing that ``getattr`` may look up."""
        if kind is not _MEM_FORMAT_ENCODING or name not in _MEM_FORMAT_ENCODING.__members__:
            raise self._refused(f"{name} of {kind!r}")
        return _MEM_FORMAT_ENCODING[name]

    def _refused(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path} asks for {what}, which no index of tensors needs: it is damaged, or made to run a program. "
            "Nothing of it has been run; use another checkpoint."
        )
