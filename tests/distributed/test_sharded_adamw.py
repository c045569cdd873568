"""ZeRO-1 of our own: the weights of any number of replicas are those of one process, and gradients leave early.

Buckets are made so small here that a process of the tiny model has many; a run has one for tens of millions of numbers.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from deepspeed.runtime.pipe import schedule

from megatron_poro.config.run import EngineKind, OptimizerConfig, PipelineSchedule, Precision, TrainConfig
from megatron_poro.engine import gradient_sums, sharded_adamw
from megatron_poro.engine.buckets import make_buckets
from megatron_poro.engine.engine import FragmentKind
from megatron_poro.engine.gradient_sums import ScatteredSums
from megatron_poro.engine.optimizer import adamw, parameter_groups, set_learning_rate
from megatron_poro.engine.pipeline_engine import PipelineEngine
from megatron_poro.engine.sharded_adamw import ShardedAdamW
from megatron_poro.parallel.groups import AxisGroup, ParallelGroups
from megatron_poro.parallel.shards import name_of, shard_of
from megatron_poro.parallel.topology import Topology
from tests.distributed.test_ladder import assert_same
from tests.support.ranks import run_ranks
from tests.support.tiny import Trained, full_values, make_engine, run_steps, tiny_config, train
from tests.unit.engine.test_buckets import parameters

SMALL = 3000


@contextmanager
def small_buckets() -> Iterator[None]:
    with mock.patch.object(sharded_adamw, "bucket_numbers", return_value=SMALL):
        yield


def trained_in_small_buckets(config: TrainConfig, topology: Topology) -> Trained:
    with small_buckets():
        return train(config, topology)


@functools.cache
def control(global_batch: int) -> Trained:
    return run_ranks(train, tiny_config(kind=EngineKind.LOCAL, global_batch=global_batch), world=1)[0]


@pytest.mark.parametrize("data", [1, 2, 3, 4, 5])
def test_any_number_of_replicas_trains_as_one_process_does(data: int) -> None:
    """3 and 5 divide no bucket, so there is padding."""
    config = tiny_config(global_batch=2 * data)
    found = run_ranks(trained_in_small_buckets, config, Topology(1, 1, data), world=data)[0]
    assert_same(found, control(2 * data), tolerance=1e-4, weights=5e-4)


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("pipeline_schedule", list(PipelineSchedule))
def test_many_buckets_of_all_axes_train_as_one_process_does(
    pipeline_schedule: PipelineSchedule, sequence: bool
) -> None:
    config = tiny_config(pipeline_schedule=pipeline_schedule, sequence=sequence)
    found = run_ranks(trained_in_small_buckets, config, Topology(2, 2, 2), world=8)[0]
    assert_same(found, control(16), tolerance=1e-4, weights=5e-4)


def test_bf16_in_many_buckets_trains_as_in_few_and_goes_on_at_another_layout() -> None:
    config, at = tiny_config(precision=Precision.BF16), Topology(1, 2, 2)
    found = run_ranks(trained_in_small_buckets, config, at, world=4)[0]
    assert_same(found, run_ranks(train, config, at, world=4)[0], tolerance=1e-4, weights=5e-4)
    loaded = run_ranks(loaded_in_small_buckets, config, Topology(2, 1, 2), found.values, world=4)[0]
    assert loaded.keys() == found.values.keys()
    assert all(torch.equal(loaded[name], values) for name, values in found.values.items())


def loaded_in_small_buckets(
    config: TrainConfig, topology: Topology, values: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """An engine's values after it was given full tensors; every process has each weight as its rounded master."""
    with small_buckets():
        engine = make_engine(config, topology)
    assert isinstance(engine, PipelineEngine)
    for fragment in engine.fragments():
        whole = fragment.shard.cut(values[f"{fragment.kind.value}.{fragment.name}"]).reshape(-1)
        fragment.flat.copy_(whole[fragment.start : fragment.start + fragment.flat.numel()])
    engine.load_finished(optimizer_step=3)
    for parameter in engine._parameters:
        master = shard_of(parameter).cut(values[f"{FragmentKind.MASTER.value}.{name_of(parameter)}"])
        assert torch.equal(parameter.detach(), master.to(parameter.dtype)), name_of(parameter)
    return full_values(engine)


def updated(steps: int, numbers: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Parameters after some steps of given gradients, of which each replica has an equal term; and the squares of this
    replica's share of them, step by step.
    """
    groups = ParallelGroups.create(Topology(data=torch.distributed.get_world_size()))
    held = parameters((7, 3), (5,), (4, 3), (2,))
    with mock.patch.object(sharded_adamw, "bucket_numbers", return_value=numbers):
        sharded = ShardedAdamW(
            held,
            OptimizerConfig(),
            replicas=groups.data,
            completed_over=lambda _: AxisGroup.single(),
            reproducible=True,
        )
    sums = ScatteredSums(sharded.buckets, replicas=groups.data, passes=lambda _: 2)
    set_learning_rate(sharded.optimizer, 0.1)
    squares = []
    for step in range(steps):
        sums.start_step()
        for _ in range(2):
            (sum((1 + step) * p.square().sum() for p in held) / (2 * groups.data.size)).backward()  # type: ignore[union-attr]
        sums.reduce()
        squares.append(sum(float(g.double().square().sum()) for _, g in sums.reduced()))
        sharded.update(torch.tensor(100.0))
    return {p.canonical_name: p.detach().clone() for p in held}, squares  # type: ignore[attr-defined]


@pytest.mark.parametrize("numbers", [1, 20, 1000])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_update_of_shares_has_the_bits_of_the_update_of_whole_tensors(world: int, numbers: int) -> None:
    """Replicas whose terms are halves and quarters of one another's sum add up without rounding."""
    plain = parameters((7, 3), (5,), (4, 3), (2,))
    config = OptimizerConfig()
    optimizer = adamw(parameter_groups(plain, config), config, reproducible=True)
    set_learning_rate(optimizer, 0.1)
    squares = []
    for step in range(3):
        for parameter in plain:
            parameter.grad = 2 * (1 + step) * parameter.detach()
        squares.append(sum(float(p.grad.double().square().sum()) for p in plain if p.grad is not None))
        torch._foreach_mul_([p.grad for p in plain], (config.clip_norm / (torch.tensor(100.0) + 1e-6)).clamp(max=1.0))
        optimizer.step()
    shares = run_ranks(updated, 3, numbers, world=world)
    for found, _ in shares:
        for parameter in plain:
            name = parameter.canonical_name  # type: ignore[attr-defined]
            assert torch.equal(found[name], parameter.detach()), name
    assert [sum(step) for step in zip(*(found for _, found in shares), strict=True)] == pytest.approx(
        squares, rel=1e-12
    )


def sums_over_two_ties() -> dict[str, float]:
    """Gradients of two tied weights on one of two ends, which come in another order there."""
    group = ParallelGroups.create(Topology(data=2)).data
    held = parameters((4, 2), (4, 2))
    factors = {name_of(parameter): (index + 1) * 10.0**group.rank for index, parameter in enumerate(held)}
    if group.rank == 1:
        held.reverse()
    made = make_buckets(held, replicas=AxisGroup.single(), completed_over=lambda _: group, numbers=1000)
    sums = ScatteredSums(made, replicas=AxisGroup.single(), passes=lambda _: 1)
    sum(factors[name_of(parameter)] * parameter.sum() for parameter in held).backward()  # type: ignore[union-attr]
    sums.reduce()
    return {name_of(parameter): float(gradient.mean()) for parameter, gradient in sums.whole()}


def test_the_ends_of_several_ties_do_not_mix_them_up() -> None:
    expected = {"layer0.weight": 11.0, "layer1.weight": 22.0}
    assert run_ranks(sums_over_two_ties, world=2) == [expected, expected]


def noted(config: TrainConfig, topology: Topology) -> list[str]:
    """What happens in the second step, in its order: backward passes, buckets that are sent, the reduction's end."""
    with small_buckets():
        engine = make_engine(config, topology)
    assert isinstance(engine, PipelineEngine)
    events: list[str] = []
    start = gradient_sums.start_reduce_scatter

    def note(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            events.append(f"begin {name}")
            result = function(*arguments, **options)
            assert all(parameter.grad is None for parameter in engine._parameters), "a gradient is left"
            events.append(f"end {name}")
            return result

        return run

    first_of = {bucket.gradients.data_ptr(): name_of(bucket.parameters[0]) for bucket in engine._sharded.buckets}

    def send(gradients: torch.Tensor, *arguments: Any) -> Any:
        events.append(f"send {first_of[gradients.data_ptr()]}")
        return start(gradients, *arguments)

    instructions = engine._deepspeed._INSTRUCTION_MAP
    instructions[schedule.BackwardPass] = note("backward", instructions[schedule.BackwardPass])
    instructions[schedule.ReduceGrads] = note("reduce", instructions[schedule.ReduceGrads])
    run_steps(engine, config, range(1))
    events.clear()
    with mock.patch.object(gradient_sums, "start_reduce_scatter", send):
        run_steps(engine, config, range(1, 2))
    return events


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("pipeline_schedule", list(PipelineSchedule))
def test_gradients_leave_in_the_last_backward_pass_and_none_stays_beside_its_sum(
    pipeline_schedule: PipelineSchedule, precision: Precision
) -> None:
    """DualPipeV goes on with one of a process's two stages when the other one has sent its gradients."""
    config = tiny_config(pipeline_schedule=pipeline_schedule, precision=precision)
    dual = pipeline_schedule is PipelineSchedule.DUALPIPEV
    passes = 16 if dual else 8
    for rank, events in enumerate(run_ranks(noted, config, Topology(1, 2, 2), world=4)):
        assert events.count("end backward") == passes
        sends = [position for position, event in enumerate(events) if event.startswith("send ")]
        assert len(sends) > 3
        over = events[: sends[0]].count("end backward")
        assert over <= passes - 2 if dual else over == passes - 1
        assert sends[-1] < len(events) - 1 - events[::-1].index("end backward"), "the last one beside a pass too"
        # the first stage, ranks 0 and 1, goes back through the embedding last; a stage with the head alone, first
        has_matrix = rank < 2 or not dual
        assert ("send embedding.weight" in events) is has_matrix
        if has_matrix:
            assert events[sends[-1 if rank < 2 else 0]] == "send embedding.weight"
