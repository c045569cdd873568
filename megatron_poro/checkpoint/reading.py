"""Reading a checkpoint one full tensor at a time: no process group, no GPU, the memory of one tensor.

Export, evaluation and inspection read through this; the layout that wrote the checkpoint does not matter to them.
"""

import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.fragment import split_key, tensor_key
from megatron_poro.checkpoint.index import read_index
from megatron_poro.checkpoint.state import META_NAME, TOKENIZER_FOLDER, RunState
from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import Precision
from megatron_poro.config.typed import typed
from megatron_poro.engine.engine import FragmentKind
from megatron_poro.errors import CheckpointError, ConfigError
from megatron_poro.models.families import family
from megatron_poro.models.init import weight_dtype
from megatron_poro.tokenizer.tokenizer import Tokenizer


class CheckpointReader:
    """The tensors and the state of one checkpoint.

    Args:
        path: a step folder.

    Raises:
        CheckpointError: if the folder is not a checkpoint (its files' sizes are compared; for their contents call
            :meth:`require_intact`).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        _refuse(self.path, manifest.problems(self.path, checksums=False))
        self.state = RunState.read(self.path / META_NAME)

    def require_intact(self) -> None:
        """Compares every byte with the manifest.

        Raises:
            CheckpointError: naming each damaged file.
        """
        _refuse(self.path, manifest.problems(self.path))

    @cached_property
    def model(self) -> BloomConfig:
        """Sizes of the model.

        Raises:
            CheckpointError: if the config in the checkpoint is not one of a model.
        """
        section = self.setting("model", {})
        try:
            model: BloomConfig = typed(family(str(section.get("family"))).schema, section)
        except ConfigError as error:
            raise CheckpointError(f"checkpoint {self.path} has no usable model config: {error}") from error
        return model

    @cached_property
    def dtype(self) -> torch.dtype:
        """Format of the weights that the masters are rounded to."""
        precision = Precision(self.setting("engine.precision", Precision.BF16.value))
        return weight_dtype(precision)

    def setting(self, key: str, default: Any) -> Any:
        """A value of the config in the checkpoint by dotted key; the default if it has none, as an import may."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that is kept in the checkpoint.

        Raises:
            DataError: if it holds none.
        """
        return Tokenizer.load(self.path / TOKENIZER_FOLDER)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config of the run that wrote it, as nested dicts; an import has a part of one."""
        values = OmegaConf.to_container(OmegaConf.create(self.state.config), resolve=True)
        assert isinstance(values, dict), f"the config in {self.path} is not a mapping"
        return {str(key): value for key, value in values.items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by canonical name."""
        return {name: shape for (kind, name), shape in self.tensors.items() if kind is FragmentKind.MASTER}

    @cached_property
    def tensors(self) -> dict[tuple[FragmentKind, str], tuple[int, ...]]:
        """Shape of each saved value, in order of their keys."""
        return {
            split_key(key): tuple(entry.size)
            for key, entry in sorted(self.index.state_dict_metadata.items())
            if isinstance(entry, TensorStorageMetadata)
        }

    @cached_property
    def index(self) -> Metadata:
        """Torch's record of which chunk of which tensor is where.

        Raises:
            CheckpointError: if it is not one; nothing of what it may hold else is run.
        """
        return read_index(self.path, manifest.read(self.path))

    @cached_property
    def files_of_masters(self) -> frozenset[str]:
        """Every file but those that hold nothing but moments."""
        moments, masters = set[str](), set[str]()
        for place, stored in self.index.storage_data.items():
            kind, _ = split_key(place.fqn)
            (masters if kind is FragmentKind.MASTER else moments).add(stored.relative_path)
        return frozenset(manifest.read(self.path)) - (moments - masters)

    def tensor(self, name: str, kind: FragmentKind = FragmentKind.MASTER) -> Tensor:
        """One full tensor, fp32, on the host.

        Raises:
            CheckpointError: if the checkpoint has no such tensor.
        """
        if (kind, name) not in self.tensors:
            raise CheckpointError(f"checkpoint {self.path} has no {tensor_key(kind, name)}.")
        full = torch.empty(self.tensors[kind, name], dtype=torch.float32)
        self.fill({tensor_key(kind, name): full})
        return full

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter in fp32, one after the other."""
        for name in self.shapes:
            yield name, self.tensor(name)

    def fill(self, tensors: dict[str, Tensor], *, distributed: bool = False) -> None:
        """Reads values by key into tensors, or into the chunks of them that are there.

        Args:
            tensors: plain or chunked tensors.
            distributed: whether all processes call it, each with its own; then a failure of one is a failure of all.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            state_dict_loader.load(
                tensors,
                storage_reader=_IndexedReader(self.path, self.index),
                planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                no_dist=not distributed,
            )


class _IndexedReader(FileSystemReader):
    """Torch's reader with the index already in memory: a model read tensor by tensor parses it once, not 653 times."""

    def __init__(self, path: Path, index: Metadata) -> None:
        super().__init__(path)
        self._index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        # chunk by chunk: in one call torch holds a chunk until it has read the next
        for item in plan.items:
            super().read_data(LoadPlan([item]), planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(f"{path} is not a valid checkpoint: {'; '.join(problems)}. Use another one.")
