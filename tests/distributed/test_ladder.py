"""The proof ladder, rungs 2 to 5: DeepSpeed at every layout trains as one process of plain torch does.

The control is ``LocalEngine`` in this process. Every run sees the same global batches, with uneven loss masks, and
starts from the same full tensors. Tolerances are those of docs/numerics.md.
"""

import functools
from typing import Any

import pytest
import torch

from megatron_poro.config.run import (
    AttentionBackend,
    EngineKind,
    PipelineSchedule,
    Precision,
    Recompute,
    TrainConfig,
)
from megatron_poro.models import tiles
from megatron_poro.models.kernel_choice import attention_kernel
from megatron_poro.parallel.topology import Topology
from tests.support.ranks import run_ranks
from tests.support.tiny import Trained, masters, tiny_config, train

LAYOUTS = [(1, 1, 1), (2, 1, 1), (4, 1, 1), (1, 2, 1), (1, 4, 1), (1, 1, 2), (2, 2, 1), (1, 2, 2), (2, 1, 2), (2, 2, 2)]


@functools.cache
def control(precision: Precision, dropout: float = 0.0) -> Trained:
    config = tiny_config(kind=EngineKind.LOCAL, precision=precision, hidden_dropout=dropout)
    return train(config)


def at_layout(config: TrainConfig, layout: tuple[int, int, int]) -> Trained:
    topology = Topology(*layout)
    return run_ranks(train, config, topology, world=topology.world_size)[0]


def assert_same(found: Trained, expected: Trained, *, tolerance: float, weights: float) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=tolerance)
    assert found.norms == pytest.approx(expected.norms, rel=tolerance)
    assert found.validation == pytest.approx(expected.validation, rel=tolerance)
    for found_sources, expected_sources in zip(found.source_losses, expected.source_losses, strict=True):
        assert found_sources == pytest.approx(expected_sources, rel=tolerance)
    assert masters(found).keys() == masters(expected).keys()
    for name, weight in masters(expected).items():
        torch.testing.assert_close(
            masters(found)[name], weight, rtol=0.0, atol=weights, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_control_learns() -> None:
    losses = control(Precision.FP32).losses
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_fp32_at_any_layout_equals_one_process(layout: tuple[int, int, int]) -> None:
    found = at_layout(tiny_config(recompute=Recompute.FULL), layout)
    # Adam's first steps move every weight by about the learning rate (1e-2) whatever the gradient's size, so a weight
    # whose gradient is rounding noise may differ by some of it
    assert_same(found, control(Precision.FP32), tolerance=1e-4, weights=5e-4)


@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_bf16_at_any_layout_equals_one_process(layout: tuple[int, int, int]) -> None:
    found = at_layout(tiny_config(precision=Precision.BF16), layout)
    expected = control(Precision.BF16)
    assert found.losses == pytest.approx(expected.losses, rel=5e-3)
    assert found.norms == pytest.approx(expected.norms, rel=2e-2)


@pytest.mark.parametrize("layout", [(1, 2, 1), (2, 2, 1), (2, 2, 2)], ids=str)
def test_dualpipev_equals_one_process(layout: tuple[int, int, int]) -> None:
    config = tiny_config(pipeline_schedule=PipelineSchedule.DUALPIPEV, num_layers=4)
    assert_same(at_layout(config, layout), control(Precision.FP32), tolerance=1e-4, weights=5e-4)


def test_dualpipev_is_bitwise_1f1b_where_stages_add_nothing_up() -> None:
    """One replica and no tensor cut: only the order of stages differs, so losses are equal to the last bit."""
    one = at_layout(tiny_config(), (1, 2, 1))
    dual = at_layout(tiny_config(pipeline_schedule=PipelineSchedule.DUALPIPEV), (1, 2, 1))
    assert dual.losses[0] == one.losses[0]


@pytest.mark.parametrize("microbatch", [2, 4, 8])
def test_accumulation_does_not_change_the_step(microbatch: int) -> None:
    found = at_layout(tiny_config(microbatch=microbatch), (1, 2, 1))
    assert_same(found, control(Precision.FP32), tolerance=1e-4, weights=5e-4)


@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL])
@pytest.mark.parametrize("layout", [(1, 1, 2), (2, 2, 1)], ids=str)
def test_dropout_is_the_same_at_any_layout(recompute: Recompute, layout: tuple[int, int, int]) -> None:
    found = at_layout(tiny_config(hidden_dropout=0.2, recompute=recompute), layout)
    assert_same(found, control(Precision.FP32, 0.2), tolerance=1e-4, weights=5e-4)
    assert found.losses[0] != pytest.approx(control(Precision.FP32).losses[0], rel=1e-3), "dropout did nothing"


def train_compiled(config: TrainConfig, topology: Topology) -> tuple[Trained, dict[str, int]]:
    """A run with compiled blocks, and what was compiled for it."""
    from torch._dynamo.utils import counters

    counters.clear()
    return train(config, topology), dict(counters["stats"])


def test_compiled_blocks_train_as_one_process_does_and_are_compiled_once_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the attention that a run on a CPU takes by itself, here of two tiles; the control's is eager."""
    monkeypatch.setattr(tiles, "SMALLEST_TILE", 8)
    config = tiny_config(compiled=True, attention=AttentionBackend.AUTO)
    assert attention_kernel(config, "cpu") is AttentionBackend.TILED
    assert len(tiles.tile_bounds(config.data.sequence_length)) == 2
    found, compiled = run_ranks(train_compiled, config, Topology(), world=1)[0]
    assert_same(found, control(Precision.FP32), tolerance=1e-4, weights=5e-4)
    # a block for training and for evaluation, and the loss forward and backward: not each of the four blocks. Eager
    # attention would add one, since a block's first run makes ALiBi's bias and the others find it there.
    assert compiled["unique_graphs"] == 4


def test_compiled_blocks_in_bf16_train_as_one_process_does() -> None:
    config = tiny_config(compiled=True, precision=Precision.BF16, attention=AttentionBackend.AUTO)
    found, _ = run_ranks(train_compiled, config, Topology(), world=1)[0]
    assert found.losses == pytest.approx(control(Precision.BF16).losses, rel=5e-3)
    assert found.norms == pytest.approx(control(Precision.BF16).norms, rel=2e-2)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ((2, 1, 1), {"sequence": True, "recompute": Recompute.SELECTIVE, "attention": AttentionBackend.AUTO}),
        ((1, 2, 2), {"recompute": Recompute.FULL, "recompute_blocks": [1, 1]}),  # each stage has blocks of two kinds
    ],
)
def test_compiled_blocks_of_a_grid_train_as_one_process_does(
    layout: tuple[int, int, int], options: dict[str, Any]
) -> None:
    config, topology = tiny_config(compiled=True, hidden_dropout=0.2, **options), Topology(*layout)
    found, compiled = run_ranks(train_compiled, config, topology, world=topology.world_size)[0]
    assert_same(found, control(Precision.FP32, 0.2), tolerance=1e-4, weights=5e-4)
    assert compiled["unique_graphs"] > 0


@pytest.mark.parametrize(
    ("layout", "schedule", "counts"),
    [
        ((1, 1, 1), PipelineSchedule.ONE_F_ONE_B, [3]),
        ((2, 2, 1), PipelineSchedule.ONE_F_ONE_B, [2, 1]),
        ((1, 2, 1), PipelineSchedule.DUALPIPEV, [1, 2]),
    ],
)
@pytest.mark.parametrize("recompute", [Recompute.SELECTIVE, Recompute.FULL])
def test_blocks_that_are_recomputed_change_no_bit(
    layout: tuple[int, int, int], schedule: PipelineSchedule, counts: list[int], recompute: Recompute
) -> None:
    """Some blocks of each rank, against none: losses, gradient norms and all values after three steps."""
    options: dict[str, Any] = {"pipeline_schedule": schedule, "hidden_dropout": 0.2, "attention_dropout": 0.2}
    kept = at_layout(tiny_config(**options), layout)
    again = at_layout(tiny_config(recompute=recompute, recompute_blocks=counts, **options), layout)
    assert (again.losses, again.norms) == (kept.losses, kept.norms)
    for name, values in kept.values.items():
        assert torch.equal(again.values[name], values), name


@pytest.mark.parametrize(
    ("layout", "deferred", "options"),
    [
        ((1, 2, 1), 0, {}),
        ((1, 4, 1), 3, {}),
        ((1, 4, 1), 3, {"precision": Precision.BF16, "recompute": Recompute.SELECTIVE, "hidden_dropout": 0.2}),
        ((2, 2, 2), 1, {"recompute": Recompute.FULL, "attention_dropout": 0.2}),
        ((2, 2, 1), 1, {"sequence": True, "microbatch": 2}),
        ((2, 2, 1), 0, {"sequence": True, "precision": Precision.BF16, "recompute": Recompute.FULL}),
        ((1, 2, 2), 1, {"reproducible": True}),
        ((1, 2, 1), 1, {"compiled": True, "attention": AttentionBackend.AUTO}),
    ],
    ids=str,
)
def test_weight_gradients_that_wait_change_no_bit(
    layout: tuple[int, int, int], deferred: int, options: dict[str, Any]
) -> None:
    """Against weight gradients inside of backward passes: losses, gradient norms and all values after three steps."""
    at_once = at_layout(tiny_config(**options), layout)
    later = at_layout(tiny_config(deferred=deferred, **options), layout)
    assert (later.losses, later.norms, later.validation) == (at_once.losses, at_once.norms, at_once.validation)
    for name, values in at_once.values.items():
        assert torch.equal(later.values[name], values), name


def test_attention_dropout_draws_the_same_masks_again_when_recomputed() -> None:
    kept = at_layout(tiny_config(attention_dropout=0.3), (2, 1, 1))
    for recompute in (Recompute.SELECTIVE, Recompute.FULL):
        again = at_layout(tiny_config(attention_dropout=0.3, recompute=recompute), (2, 1, 1))
        assert again.losses == kept.losses
