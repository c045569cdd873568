"""What part of the full tensor a parameter is. Every parameter carries one such note, as ``param.shard``.

Initialisation, the gradient norm, checkpoints, and import and export all read it; none of them has rules of its
own about which layer is cut how.

Source: the idea of a parameter that knows its shard is nanotron's ``ShardedInfo``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Initial:
    """How the full tensor is drawn before training: normal with this mean and standard deviation."""

    mean: float = 0.0
    std: float = 0.0


@dataclass(frozen=True)
class ShardSpec:
    """The slice of the full tensor that one tensor rank holds.

    Attributes:
        full_shape: shape of the whole tensor, whatever the layout.
        dim: dimension that is cut into ``size`` equal slices, or ``None`` if every tensor rank holds all of it.
        rank: which slice this is.
        size: number of slices (1 when ``dim`` is ``None``).
    """

    full_shape: tuple[int, ...]
    dim: int | None = None
    rank: int = 0
    size: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of this slice."""
        if self.dim is None:
            return self.full_shape
        shape = list(self.full_shape)
        shape[self.dim] //= self.size
        return tuple(shape)

    @property
    def origin(self) -> tuple[int, ...]:
        """Coordinates of this slice's first element in the full tensor."""
        return tuple(self.rank * self.shape[i] if i == self.dim else 0 for i in range(len(self.full_shape)))

    def cut(self, full: Tensor) -> Tensor:
        """This slice of the full tensor, as a view."""
        if tuple(full.shape) != self.full_shape:
            raise ValueError(f"cut: expected a tensor of shape {self.full_shape}, got {tuple(full.shape)}")
        if self.dim is None:
            return full
        return full.narrow(self.dim, self.origin[self.dim], self.shape[self.dim])

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The full tensor from the slices of all tensor ranks, in rank order."""
        return parts[0] if self.dim is None else torch.cat(list(parts), dim=self.dim)


def new_parameter(shard: ShardSpec, initial: Initial) -> nn.Parameter:
    """An empty parameter of a layer: the given slice, to be filled later as ``initial`` says."""
    parameter = nn.Parameter(torch.empty(shard.shape))
    mark_shard(parameter, shard)
    parameter.initial = initial  # type: ignore[attr-defined]
    return parameter


def mark_shard(parameter: nn.Parameter, shard: ShardSpec) -> None:
    """Notes on a parameter which slice it is; checks that the shape agrees."""
    assert tuple(parameter.shape) == shard.shape, f"parameter of shape {tuple(parameter.shape)} marked as {shard}"
    parameter.shard = shard  # type: ignore[attr-defined]


def mark_partial(parameter: nn.Parameter) -> None:
    """Notes on a whole parameter that each tensor rank uses it for its part of the sequence only.

    Its gradient on a rank is then a term of the true one; an engine adds the terms up over the tensor group.
    """
    assert shard_of(parameter).dim is None, f"{shard_of(parameter)} is cut, so no other rank has a term of its gradient"
    parameter.partial = True  # type: ignore[attr-defined]


def is_partial(parameter: nn.Parameter) -> bool:
    """Whether :func:`mark_partial` left its note."""
    return getattr(parameter, "partial", False)


def set_name(parameter: nn.Parameter, name: str) -> None:
    """Notes the canonical name: what the parameter is called in every layout and in checkpoints."""
    parameter.canonical_name = name  # type: ignore[attr-defined]


def name_of(parameter: nn.Parameter) -> str:
    """The note left by :func:`set_name`."""
    name = getattr(parameter, "canonical_name", None)
    assert isinstance(name, str), f"a parameter of shape {tuple(parameter.shape)} carries no canonical name"
    return name


def initial_of(parameter: nn.Parameter) -> Initial:
    """The distribution given to :func:`new_parameter`."""
    initial = getattr(parameter, "initial", None)
    assert isinstance(initial, Initial), f"a parameter of shape {tuple(parameter.shape)} carries no Initial"
    return initial


def shard_of(parameter: nn.Parameter) -> ShardSpec:
    """The note left by :func:`mark_shard`; a parameter without one is a bug of its layer."""
    shard = getattr(parameter, "shard", None)
    assert isinstance(shard, ShardSpec), f"a parameter of shape {tuple(parameter.shape)} carries no ShardSpec"
    return shard
