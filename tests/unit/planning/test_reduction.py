"""What is left of the sums over replicas behind the passes: buckets are the engine's, and leave once complete."""

import dataclasses
from typing import Any
from unittest import mock

import pytest

from megatron_poro.config.run import PipelineSchedule, Precision, TrainConfig
from megatron_poro.engine import sharded_adamw
from megatron_poro.planning.forecast import forecast
from megatron_poro.planning.layers import held_parameters, rank_layers, stage_layers
from megatron_poro.planning.passes import PassTimes, accumulated_bytes
from megatron_poro.planning.reduction import bucket_sizes, unsent_seconds
from megatron_poro.planning.traffic import Links, links, rank_traffic
from megatron_poro.simulation.rank import simulate_rank
from tests.support.tiny import tiny_config
from tests.unit.planning.configs import lumi_g, poro, small

DUAL = PipelineSchedule.DUALPIPEV


def laid_out(tensor: int, pipeline: int, data: int, *, sequence: bool = False, **options: Any) -> TrainConfig:
    config = tiny_config(**options)
    parallel = dataclasses.replace(config.parallel, tensor=tensor, pipeline=pipeline, data=data, sequence=sequence)
    return dataclasses.replace(config, parallel=parallel)


@pytest.mark.parametrize("limit", [1000, 6000, 10**9])
@pytest.mark.parametrize(
    "config",
    [
        laid_out(1, 1, 2),
        laid_out(2, 2, 2),
        laid_out(2, 2, 2, sequence=True),
        laid_out(1, 2, 2, pipeline_schedule=DUAL, num_layers=5),
    ],
    ids=["one stage", "tie", "sequence", "dualpipev"],
)
def test_buckets_are_those_that_a_simulated_rank_sends(config: TrainConfig, limit: int) -> None:
    """In their order; the engine pads each to equal shares of the replicas."""
    parallel = config.parallel
    data = parallel.data or 1
    world_size = parallel.tensor * parallel.pipeline * data
    for rank in (0, world_size - 1):
        with mock.patch.object(sharded_adamw, "bucket_numbers", return_value=limit):
            seen = simulate_rank(config, rank=rank, world_size=world_size, backend=config.engine.attention)
        sent = [one.shape[0] for one in seen.step if (one.kind, seen.axis(one)) == ("reduce_scatter", "data")]
        planned = bucket_sizes(
            rank_layers(config)[seen.coordinate.pipeline],
            tensor=parallel.tensor,
            sequence=parallel.sequence,
            limit=limit,
        )
        assert [-(-bucket.numbers // data) * data for bucket in planned] == sent


def test_the_tied_matrix_of_poro_34b_leaves_alone_when_a_backward_pass_has_gone_through_it() -> None:
    first, *_, last = rank_layers(poro())
    of_first = bucket_sizes(first, tensor=2, sequence=False, limit=128_000_000)
    assert (of_first[-1].numbers, of_first[-1].first) == (128_000 * 7168 / 2, 0)
    of_last = bucket_sizes(last, tensor=2, sequence=False, limit=128_000_000)
    assert (of_last[0].numbers, last[of_last[0].first].role) == (128_000 * 7168 / 2, "head")
    assert sum(bucket.numbers for bucket in of_first) == held_parameters(first, 2)


def unsent(config: TrainConfig, world_size: int, behind: list[float], **bandwidths: float) -> float:
    link = dataclasses.replace(links(config, lumi_g(), world_size=world_size), **bandwidths)
    passes = PassTimes(config, lumi_g(), link)
    return unsent_seconds(config, lumi_g(), link, passes, world_size=world_size, behind=behind)


def test_behind_the_passes_comes_the_last_bucket_at_least_and_the_tie() -> None:
    config = poro()
    matrix = 4 * 128_000 * 7168 / 2
    fast = unsent(config, 1024, [0.0, 10.0, 10.0, 10.0], data=1e13)
    assert fast == pytest.approx(127 / 128 * matrix / 1e13 + matrix / 128 / 5e9, rel=1e-3)


def test_what_a_slow_link_has_not_sent_comes_behind_the_passes() -> None:
    config = poro()
    config.parallel.pipeline, config.parallel.data = 1, 512
    whole = 511 / 512 * 4 * held_parameters(rank_layers(config)[0], 2)
    assert unsent(config, 1024, [0.0], data=1e6) == pytest.approx(whole / 1e6, rel=1e-3)


def test_buckets_of_a_stage_that_ends_earlier_have_left() -> None:
    config = poro()
    config.engine.pipeline_schedule = DUAL
    together, earlier = ([0.0] * 4 + [behind] * 4 for behind in (0.0, 3.0))
    half = sum(layer.parameters(2) for layer in stage_layers(config)[-1])
    gained = unsent(config, 1024, together, data=3e9) - unsent(config, 1024, earlier, data=3e9)
    assert gained == pytest.approx(4 * half / 3e9, rel=0.5)


def test_a_rank_that_ends_earlier_has_as_much_more_time() -> None:
    config = poro()
    late, soon = (unsent(config, 1024, [0.0, behind, behind, behind], data=20e9) for behind in (0.0, 1.0))
    assert late >= soon > unsent(config, 1024, [1.0] * 4, data=20e9)


def test_exact_sums_leave_whole_in_integers_when_passes_have_ended() -> None:
    config = poro()
    config.engine.reproducible = True
    parameters = 4_467_309_056
    link = links(config, lumi_g(), world_size=1024)
    whole = 2 * 127 / 128 * 8 * parameters
    traffic = rank_traffic(config, world_size=1024)[0]
    expected = whole / link.data + 44 * parameters / 1.3e12 + traffic.tie / link.pipeline
    assert unsent(config, 1024, [0.0, 1.0, 1.0, 1.0]) == pytest.approx(expected)
    assert forecast(config, lumi_g(), world_size=1024).time.data == pytest.approx(expected, rel=1e-3)


def test_fp32_sends_weights_twice_as_wide_and_computes_at_its_own_peak() -> None:
    config = poro()
    bf16 = forecast(config, lumi_g(), world_size=1024)
    config.engine.precision = Precision.FP32
    found = forecast(config, lumi_g(), world_size=1024)
    gathered = 127 / 128 * 4_467_309_056 * 2 / links(config, lumi_g(), world_size=1024).data
    assert found.time.optimizer == pytest.approx(bf16.time.optimizer + gathered)
    assert found.time.compute == pytest.approx(bf16.time.compute * 191.5 / 47.9, rel=0.05)
    assert found.speed.mfu == pytest.approx(found.speed.model_tflops / 47.9)


@pytest.mark.parametrize(
    ("precision", "reproducible", "expected"),
    [
        (Precision.BF16, False, 2 + 8),
        (Precision.FP32, False, 4 + 8),
        (Precision.BF16, True, 3 * 2 + 2 + 8 + 4 * 16 + 24),
        (Precision.FP32, True, 3 * 4 + 4 + 8 + 4 * 16 + 24),
    ],
)
def test_bytes_to_add_a_gradient_depend_on_its_format_and_its_sum(
    precision: Precision, reproducible: bool, expected: float
) -> None:
    config = small()
    config.engine.precision, config.engine.reproducible = precision, reproducible
    assert accumulated_bytes(config) == expected


MODULE, NODE, NETWORK = 160e9, 40e9, 5e9


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ((2, 1, 1), (MODULE, MODULE, MODULE)),
        ((1, 2, 1), (MODULE, MODULE, MODULE)),
        ((4, 2, 1), (NODE, NODE, NODE)),
        # two nodes: two of three boundaries lie inside one, the third does not
        ((2, 4, 2), (MODULE, NETWORK, NODE)),
        # stages of six processes, of which one lies on two nodes
        ((2, 4, 3), (MODULE, NETWORK, 20e9)),
        ((2, 1, 8), (MODULE, NETWORK, 20e9)),
        ((8, 1, 2), (NODE, NETWORK, NETWORK)),
        ((16, 1, 1), (NETWORK, NETWORK, NETWORK)),
        ((2, 4, 128), (MODULE, NETWORK, 20e9)),
    ],
)
def test_a_group_has_the_link_of_the_place_where_its_processes_are(
    grid: tuple[int, int, int], expected: tuple[float, float, float]
) -> None:
    """Bytes per second of tensor group, pipeline and data group on nodes of four modules of two devices."""
    tensor, pipeline, data = grid
    config = small(tensor=tensor, pipeline=pipeline, data=data)
    found = links(config, lumi_g(), world_size=tensor * pipeline * data)
    assert found == Links(*expected, latency=20e-6)
