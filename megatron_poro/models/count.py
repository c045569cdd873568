"""How large a model is, from its plan on the meta device: no memory, no weights."""

import itertools

from megatron_poro.config.model import BloomConfig
from megatron_poro.models.bloom import BlockOptions
from megatron_poro.models.families import family
from megatron_poro.models.init import build_layer
from megatron_poro.models.plan import LayerEntry, split_weights
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.stages import stage_boundaries


def count_parameters(model: BloomConfig) -> int:
    """Parameters of the whole model, a tied matrix counted once."""
    plan = family(model.family).plan(model, group=AxisGroup.single(), options=BlockOptions())
    return sum(_layer_parameters(entry) for entry in plan.entries if entry.tied_to is None)


def count_shard_parameters(
    model: BloomConfig, *, tensor_size: int, num_stages: int, by_cost: bool = False
) -> list[int]:
    """Parameters that one tensor rank of each pipeline stage holds, a tied copy included.

    Args:
        model: the whole model.
        tensor_size: ``parallel.tensor``; all tensor ranks hold equally many.
        num_stages: ``parallel.pipeline``.
        by_cost: stages of equal cost instead of equal numbers of layers.
    """
    # every layer looks only at the rank and size of its group when it is built, so no process group is needed
    plan = family(model.family).plan(model, group=AxisGroup(rank=0, size=tensor_size), options=BlockOptions())
    sizes = [_layer_parameters(entry) for entry in plan.entries]
    bounds = stage_boundaries(split_weights(plan, by_cost=by_cost), num_stages)
    return [sum(sizes[first:last]) for first, last in itertools.pairwise(bounds)]


def _layer_parameters(entry: LayerEntry) -> int:
    layer = build_layer(entry, seed=None, device="meta")
    return sum(parameter.numel() for parameter in layer.parameters())
