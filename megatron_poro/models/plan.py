"""A model as data: an ordered list of named layers and which of them share a weight. No layer is built here.

One plan serves a whole model in one process (:mod:`megatron_poro.models.causal_lm`), the stages of a pipeline
(:mod:`megatron_poro.engine.pipeline_engine`), parameter counts, and the names in checkpoints. A parameter is called
``<role>.<name in the layer>`` in every layout, for instance ``blocks.7.mlp.up.weight``.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from megatron_poro.parallel.stages import weigh


@dataclass(frozen=True)
class LayerEntry:
    """One layer of a plan.

    Attributes:
        role: canonical name, the prefix of its parameters (``embedding``, ``blocks.7``, ``final_norm``, ``head``).
        module: class of the layer; an instance is made only in the process that owns it.
        arguments: keyword arguments of ``module``.
        tied_to: role of an earlier layer whose module this layer uses as its own; such a layer adds no parameter.
        forward: for a tied layer, what it computes with that module: ``forward(module, hidden)``.
        cost: multiply-adds per token of a forward pass, for balancing stages.
        counts: whether the layer counts when stages are balanced by number of layers.
        is_block: whether the layer is one of those that a model repeats; its arguments then hold ``options``.
    """

    role: str
    module: type[nn.Module]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tied_to: str | None = None
    forward: Callable[[Any, Any], Any] | None = None
    cost: float = 0.0
    counts: bool = False
    is_block: bool = False

    @property
    def owner(self) -> str:
        """Role under which the layer's parameters are named: its own, or that of the layer it is tied to."""
        return self.tied_to or self.role


@dataclass(frozen=True)
class LayerPlan:
    """The layers of a model, first to last: token ids ``[b, s]`` go in, logits ``[b, s, v/tp]`` come out."""

    entries: tuple[LayerEntry, ...]

    def __post_init__(self) -> None:
        roles = [entry.role for entry in self.entries]
        assert len(set(roles)) == len(roles), f"a role appears twice in the plan: {roles}"
        for entry in self.entries:
            assert entry.tied_to is None or entry.tied_to in roles, f"{entry.role} is tied to unknown {entry.tied_to}"

    @property
    def tied_roles(self) -> frozenset[str]:
        """Roles whose weight is used by more than one layer."""
        return frozenset(entry.tied_to for entry in self.entries if entry.tied_to is not None)

    def with_options(self, options: Any, *, roles: Collection[str]) -> "LayerPlan":
        """The plan with other ``options`` for some of its blocks."""
        return LayerPlan(
            tuple(
                replace(entry, arguments={**entry.arguments, "options": options}) if entry.role in roles else entry
                for entry in self.entries
            )
        )


def split_weights(plan: LayerPlan, *, by_cost: bool) -> list[float]:
    """What each layer of a plan weighs when it is cut into stages, see :func:`~megatron_poro.parallel.stages.weigh`."""
    return weigh([(entry.cost, entry.counts) for entry in plan.entries], by_cost=by_cost)


def canonical_names(module: nn.Module, owner: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a built layer under their names in checkpoints."""
    for name, parameter in module.named_parameters():
        yield f"{owner}.{name}", parameter
