"""``engine.reproducible``: every layout trains the same bits as one process of plain torch.

Compared are losses, losses per source, gradient norms, validation losses, and at the end all masters and moments. With
the mode off the same layouts differ, so the comparison can tell.
"""

import functools
import math

import pytest
import torch
import torch.distributed as dist

from megatron_poro.config.run import EngineKind, PipelineSchedule, Precision, TrainConfig
from megatron_poro.parallel.topology import Topology
from megatron_poro.train.next_token import NextToken
from tests.distributed.test_truth import check_many
from tests.support.ranks import run_ranks
from tests.support.tiny import Trained, full_values, make_engine, microbatches, run_steps, tiny_config, train

STEPS = 8


def config_of(precision: Precision, reproducible: bool = True, **options: object) -> TrainConfig:
    """A model and a batch that round differently wherever they can.

    A step has 12 microbatches, which are 12, 6 or 3 a replica: halves would divide without rounding. Biases have 20
    elements, which no vector of a processor divides, so kernels treat some of them differently where tensors are cut.
    """
    values: dict[str, object] = {"global_batch": 12, "hidden_size": 20, "hidden_dropout": 0.1, **options}
    return tiny_config(precision=precision, reproducible=reproducible, **values)  # type: ignore[arg-type]


@functools.cache
def one_process(precision: Precision, reproducible: bool = True) -> Trained:
    return train(config_of(precision, reproducible, kind=EngineKind.LOCAL), steps=STEPS)


def run(config: TrainConfig, topology: Topology, steps: int) -> Trained:
    return train(config, topology, steps=steps)


def at_layout(config: TrainConfig, layout: tuple[int, int, int], steps: int = STEPS) -> Trained:
    topology = Topology(*layout)
    return run_ranks(run, config, topology, steps, world=topology.world_size)[0]


def differences(found: Trained, expected: Trained) -> list[str]:
    """Everything that is not equal to the last bit."""
    curves = [name for name in Trained._fields[:-1] if getattr(found, name) != getattr(expected, name)]
    assert found.values.keys() == expected.values.keys()
    return curves + [name for name, value in expected.values.items() if not torch.equal(found.values[name], value)]


@pytest.mark.parametrize(
    ("precision", "layout"),
    [
        (Precision.BF16, (1, 1, 2)),
        (Precision.BF16, (1, 2, 1)),
        (Precision.BF16, (1, 4, 1)),
        (Precision.BF16, (1, 2, 2)),
        (Precision.FP32, (1, 1, 4)),
        (Precision.FP32, (1, 2, 2)),
    ],
    ids=str,
)
def test_any_layout_trains_the_bits_of_one_process(precision: Precision, layout: tuple[int, int, int]) -> None:
    assert differences(at_layout(config_of(precision), layout), one_process(precision)) == []


def test_dualpipev_does_too() -> None:
    config = config_of(Precision.BF16, pipeline_schedule=PipelineSchedule.DUALPIPEV)
    assert differences(at_layout(config, (1, 2, 1)), one_process(Precision.BF16)) == []


def test_at_a_fixed_tensor_size_the_rest_of_the_layout_does_not_matter() -> None:
    config = config_of(Precision.BF16)
    expected = at_layout(config, (2, 1, 1), steps=3)
    assert differences(at_layout(config, (2, 2, 1), steps=3), expected) == []


def moved(config: TrainConfig, before: Topology, after: Topology) -> Trained:
    """Half of the steps at one layout, the rest at another one; what a checkpoint holds is carried over."""
    half = STEPS // 2
    engine = make_engine(config, before)
    first = run_steps(engine, config, range(half))
    values = [full_values(engine)]
    dist.broadcast_object_list(values, src=0)
    engine = make_engine(config, after)
    for fragment in engine.fragments():
        shard = fragment.shard.cut(values[0][f"{fragment.kind.value}.{fragment.name}"]).reshape(-1)
        fragment.flat.copy_(shard[fragment.start : fragment.start + fragment.flat.numel()])
    engine.load_finished(half)
    second = run_steps(engine, config, range(half, STEPS))
    losses, norms, sources = (a + b for a, b in zip(first, second, strict=True))
    return Trained(losses, norms, sources, [], full_values(engine))


def test_the_layout_may_change_in_the_middle_of_a_run() -> None:
    config, before, after = config_of(Precision.BF16), Topology(1, 2, 1), Topology(1, 1, 2)
    found = run_ranks(moved, config, before, after, world=2)[0]
    assert differences(found, one_process(Precision.BF16)._replace(validation=[])) == []


def test_without_the_mode_layouts_differ() -> None:
    """The mutation that shows that the tests above can fail; and the mode trains no other model."""
    plain = one_process(Precision.BF16, False)
    assert differences(at_layout(config_of(Precision.BF16, False), (1, 1, 2)), plain) != []
    assert one_process(Precision.BF16).losses == pytest.approx(plain.losses, rel=5e-3)


def step_with_a_huge_gradient(config: TrainConfig, topology: Topology) -> tuple[bool, bool, bool]:
    """One step in which the gradient of the last replica alone is too large to be added up."""
    engine, loss = make_engine(config, topology), NextToken.loss
    if engine.groups.data.rank == engine.groups.data.size - 1:
        NextToken.loss = lambda *args: loss(*args)._replace(loss_sum=1e7 * loss(*args).loss_sum)  # type: ignore[method-assign]
    batches = microbatches(config, 0, engine.groups) if engine.needs_data else []
    result = engine.train_step(batches, learning_rate=1e-2, consumed_samples=0)
    return result.taken, math.isnan(float(result.grad_norm)), math.isfinite(float(result.loss))


@pytest.mark.parametrize("layout", [(1, 1, 2), (1, 2, 2)], ids=str)
def test_a_gradient_that_one_replica_cannot_add_is_refused_by_all(layout: tuple[int, int, int]) -> None:
    topology = Topology(*layout)
    found = run_ranks(step_with_a_huge_gradient, config_of(Precision.BF16), topology, world=topology.world_size)
    assert found == [(False, True, True)] * topology.world_size


def test_the_start_up_proof_compares_the_gradients_of_the_mode() -> None:
    assert run_ranks(check_many, config_of(Precision.FP32), [(1, 2, 1, 1)], world=2)[0][0] < 2e-5


def test_the_tensor_size_changes_a_loss_by_less_than_1e_5_over_200_steps() -> None:
    def config(kind: EngineKind) -> TrainConfig:
        made = tiny_config(kind=kind, reproducible=True, global_batch=4, microbatch=4, num_layers=1)
        made.schedule.learning_rate = 1e-3
        return made

    expected = train(config(EngineKind.LOCAL), steps=200).losses
    found = at_layout(config(EngineKind.DEEPSPEED), (2, 1, 1), steps=200).losses
    assert expected[-1] < expected[0] / 2
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != expected, "a sum over a tensor group rounds differently; this control has stopped to compare"
