"""Poro 34B on the meta device: parameter counts, stage sizes and layer split of the published model."""

import itertools

import pytest

from megatron_poro.config.model import BloomConfig
from megatron_poro.models.bloom import BlockOptions, bloom_plan
from megatron_poro.models.causal_lm import whole_model
from megatron_poro.models.count import count_parameters, count_shard_parameters
from megatron_poro.models.init import build_layer
from megatron_poro.models.plan import split_weights
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.shards import name_of
from megatron_poro.parallel.stages import stage_boundaries

PORO = BloomConfig(num_layers=54, hidden_size=7168, num_heads=56, vocab_size=128_000)


def test_total_parameters() -> None:
    assert count_parameters(PORO) == 34_216_949_760


def test_parameters_by_name_and_count_of_tensors() -> None:
    model = whole_model(PORO, seed=None, device="meta")
    named = dict(model.named_parameters())
    assert len(named) == 653
    assert sum(parameter.numel() for parameter in named.values()) == 34_216_949_760
    assert sum(p.numel() for n, p in named.items() if n.startswith("blocks.7.")) == 616_655_872
    assert tuple(named["blocks.0.attention.qkv.weight"].shape) == (21_504, 7168)
    assert sum(2 * p.numel() for p in named.values()) == 68_433_899_520, "bytes in bf16"


def test_each_shard_of_the_original_layout() -> None:
    sizes = count_shard_parameters(PORO, tensor_size=2, num_stages=4)
    assert sizes == [4_467_309_056, 4_316_892_160, 4_316_892_160, 4_467_309_056]


@pytest.mark.parametrize("tensor_rank", [0, 1])
def test_every_stage_and_tensor_rank_builds_on_meta(tensor_rank: int) -> None:
    """Each of the 8 shards is built as its process would build it, not counted from a formula."""
    plan = bloom_plan(PORO, group=AxisGroup(tensor_rank, 2), options=BlockOptions())
    bounds = stage_boundaries(split_weights(plan, by_cost=False), 4)
    sizes = []
    for first, last in itertools.pairwise(bounds):
        layers = [build_layer(entry, seed=None, device="meta") for entry in plan.entries[first:last]]
        sizes.append(sum(parameter.numel() for layer in layers for parameter in layer.parameters()))
    assert sizes == [4_467_309_056, 4_316_892_160, 4_316_892_160, 4_467_309_056]


def test_blocks_are_dealt_13_14_14_13() -> None:
    plan = bloom_plan(PORO, group=AxisGroup.single(), options=BlockOptions())
    bounds = stage_boundaries(split_weights(plan, by_cost=False), 4)
    roles = [[e.role for e in plan.entries[a:b]] for a, b in itertools.pairwise(bounds)]
    assert [sum(role.startswith("blocks.") for role in stage) for stage in roles] == [13, 14, 14, 13]
    assert roles[0][:2] == ["embedding", "embedding_norm"]
    assert roles[3][-2:] == ["final_norm", "head"]


def test_the_tied_head_on_the_last_stage_carries_no_embedding_norm() -> None:
    plan = bloom_plan(PORO, group=AxisGroup.single(), options=BlockOptions())
    head = build_layer(plan.entries[-1], seed=None, device="meta")
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    assert name_of(next(head.parameters())) == "embedding.weight"


def test_by_cost_the_head_counts_and_the_embedding_does_not() -> None:
    plan = bloom_plan(PORO, group=AxisGroup.single(), options=BlockOptions())
    weights = split_weights(plan, by_cost=True)
    bounds = stage_boundaries(weights, 4)
    loads = [sum(weights[a:b]) for a, b in itertools.pairwise(bounds)]
    assert max(loads) / (sum(loads) / 4) < 1.02
    assert bounds[1] >= 15, "the first stage takes at least as many blocks as by layers"
