"""The numbers of a plan without torch are those of the model that is built."""

import pytest

from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import StageSplit
from megatron_poro.models.bloom import BlockOptions, bloom_plan
from megatron_poro.models.count import count_parameters, count_shard_parameters
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.planning.layers import model_layers, rank_layers, total_parameters
from tests.unit.planning.configs import poro, small

MODELS = [
    BloomConfig(num_layers=54, hidden_size=7168, num_heads=56, vocab_size=128_000),
    BloomConfig(num_layers=3, hidden_size=32, num_heads=4, vocab_size=280),
    BloomConfig(num_layers=7, hidden_size=96, num_heads=12, vocab_size=1024),
]


@pytest.mark.parametrize("model", MODELS)
def test_layers_are_those_of_the_model(model: BloomConfig) -> None:
    plan = bloom_plan(model, group=AxisGroup.single(), options=BlockOptions())
    assert [layer.role for layer in model_layers(model)] == [entry.role for entry in plan.entries]
    assert [layer.counts for layer in model_layers(model)] == [entry.counts for entry in plan.entries]
    assert [layer.products for layer in model_layers(model)] == [entry.cost for entry in plan.entries]
    assert total_parameters(model) == count_parameters(model)


@pytest.mark.parametrize("by_cost", [False, True])
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (2, 4), (4, 3)])
def test_parameters_of_every_stage_are_those_of_the_model(tensor: int, pipeline: int, by_cost: bool) -> None:
    config = small(num_layers=7, tensor=tensor, pipeline=pipeline)
    config.parallel.stage_split = StageSplit.COST if by_cost else StageSplit.LAYERS
    found = [sum(layer.parameters(tensor) for layer in layers) for layers in rank_layers(config)]
    built = count_shard_parameters(config.model, tensor_size=tensor, num_stages=pipeline, by_cost=by_cost)
    assert found == built


def test_poro_34b_has_the_published_parameters_on_every_stage() -> None:
    assert total_parameters(poro().model) == 34_216_949_760
    found = [sum(layer.parameters(2) for layer in layers) for layers in rank_layers(poro())]
    assert found == [4_467_309_056, 4_316_892_160, 4_316_892_160, 4_467_309_056]
