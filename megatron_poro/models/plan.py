"""A model as data: an ordered list of named layers and which of them share a weight. No layer is built here.

One plan serves a whole model in one process (:mod:`megatron_poro.models.causal_lm`), the stages of a pipeline
(:mod:`megatron_poro.engine.pipeline_engine`), parameter counts, and the names in checkpoints. A parameter is called
``<role>.<name in the layer>`` in every layout, for instance ``blocks.7.mlp.up.weight``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from megatron_poro.errors import TopologyError


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
    """

    role: str
    module: type[nn.Module]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tied_to: str | None = None
    forward: Callable[[Any, Any], Any] | None = None
    cost: float = 0.0
    counts: bool = False

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


def stage_boundaries(weights: Sequence[float], num_stages: int) -> tuple[int, ...]:
    """Cuts a list of layers into consecutive stages whose heaviest one is as light as possible.

    Layers of weight 0 stay with the layer before them, except leading ones. Among equally good cuts the one whose
    stages differ least (smallest sum of squares) wins, then the one that gives earlier stages more.

    Args:
        weights: weight of each layer, 0 for those that do not count.
        num_stages: number of stages.

    Returns:
        ``num_stages + 1`` positions; stage ``i`` is ``[bounds[i], bounds[i+1])``.

    Raises:
        TopologyError: if there are fewer counted layers than stages.
    """
    cuts = [i for i, weight in enumerate(weights) if weight > 0]
    if len(cuts) < num_stages:
        raise TopologyError(
            f"parallel.pipeline={num_stages} needs at least {num_stages} layers to deal out, the model has "
            f"{len(cuts)}. Use fewer stages or more layers."
        )
    heavy = [weights[i] for i in cuts]
    starts = _balanced_starts(heavy, num_stages)
    return (0, *(cuts[start] for start in starts[1:]), len(weights))


def _balanced_starts(weights: Sequence[float], num_stages: int) -> list[int]:
    """First item of each stage for the cut that minimises (heaviest stage, sum of squares), by dynamic programming."""
    count = len(weights)
    prefix = [0.0]
    for weight in weights:
        prefix.append(prefix[-1] + weight)
    # best[i]: cheapest way to cut the first i items into the stages so far, with the first item of each stage
    best: dict[int, tuple[tuple[float, float], list[int]]] = {0: ((0.0, 0.0), [])}
    for stage in range(num_stages):
        following: dict[int, tuple[tuple[float, float], list[int]]] = {}
        for end in range(stage + 1, count - (num_stages - stage - 1) + 1):
            for start, ((heaviest, squares), starts) in best.items():
                if start >= end:
                    continue
                load = prefix[end] - prefix[start]
                candidate = ((max(heaviest, load), squares + load * load), [*starts, start])
                # at equal cost a later start leaves more to the earlier stages
                if end not in following or (candidate[0], [-s for s in candidate[1]]) < (
                    following[end][0],
                    [-s for s in following[end][1]],
                ):
                    following[end] = candidate
        best = following
    return best[count][1]


def split_weights(plan: LayerPlan, *, by_cost: bool) -> list[float]:
    """What each layer of a plan weighs when it is cut into stages: its cost, or 1 where it counts.

    Counting layers, cost only decides between cuts that are equal otherwise.
    """
    if by_cost:
        return [entry.cost for entry in plan.entries]
    whole = sum(entry.cost for entry in plan.entries) or 1.0
    return [1.0 + 1e-3 * entry.cost / whole if entry.counts else 0.0 for entry in plan.entries]


def canonical_names(module: nn.Module, owner: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a built layer under their names in checkpoints."""
    for name, parameter in module.named_parameters():
        yield f"{owner}.{name}", parameter
