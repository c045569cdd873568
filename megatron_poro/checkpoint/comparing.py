"""What differs between two checkpoints: where the runs stood, how they were set, and each tensor by how much."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megatron_poro.checkpoint.fragment import tensor_key
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.config.identity import ABSENT, Difference, flatten_values

_TOLD_APART = ("config", "identity")  # compared key by key, or a part of what is


@dataclass(frozen=True)
class TensorDifference:
    """A value that is not the same in two checkpoints.

    Attributes:
        key: as in the checkpoint, ``master.blocks.7.mlp.up.weight``.
        left, right: its shape in each; None where there is none.
        largest: largest absolute difference of two elements; None if the shapes differ.
        elements: how many elements differ; None if the shapes differ.
    """

    key: str
    left: tuple[int, ...] | None
    right: tuple[int, ...] | None
    largest: float | None = None
    elements: int | None = None


def differing_state(left: CheckpointReader, right: CheckpointReader) -> list[Difference]:
    """The differences of ``meta.json`` beside the settings, field by field."""
    one, other = (flatten_values(dataclasses.asdict(reader.state)) for reader in (left, right))
    return [pair for pair in _pairs(one, other) if pair.key.partition(".")[0] not in _TOLD_APART]


def differing_settings(left: CheckpointReader, right: CheckpointReader) -> list[Difference]:
    """The differences of the resolved configs, key by key."""
    return _pairs(flatten_values(left.config), flatten_values(right.config))


def differing_tensors(left: CheckpointReader, right: CheckpointReader) -> Iterator[TensorDifference]:
    """Every tensor that is not bit for bit the same, one after the other; two tensors are in memory at a time."""
    for kind, name in dict.fromkeys((*left.tensors, *right.tensors)):
        key = tensor_key(kind, name)
        shapes = left.tensors.get((kind, name)), right.tensors.get((kind, name))
        if shapes[0] != shapes[1]:
            yield TensorDifference(key, *shapes)
            continue
        one, other = left.tensor(name, kind), right.tensor(name, kind)
        if not torch.equal(one, other):
            elements = int((one != other).sum())
            yield TensorDifference(key, *shapes, float(one.sub_(other).abs_().max()), elements)


def _pairs(left: dict[str, object], right: dict[str, object]) -> list[Difference]:
    keys = dict.fromkeys((*left, *right))
    pairs = [Difference(key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in keys]
    return [pair for pair in pairs if pair.left != pair.right]
