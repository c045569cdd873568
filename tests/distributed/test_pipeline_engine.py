"""What the pipeline engine owes its callers beyond equal numbers: guards, fragments, uneven evaluation."""

import dataclasses
import math

import pytest
import torch

from megatron_poro.config.run import PipelineSchedule, Precision, TrainConfig
from megatron_poro.engine.pipeline_engine import PipelineEngine
from megatron_poro.errors import TopologyError
from megatron_poro.parallel.topology import Topology
from tests.support.ranks import RankFailure, run_ranks
from tests.support.tiny import full_values, make_engine, microbatches, run_steps, tiny_config


def poisoned_step(config: TrainConfig, topology: Topology) -> tuple[bool, bool, list[float]]:
    """One replica's last stage sees a NaN; whether the step was taken, whether nothing changed, next loss."""
    engine = make_engine(config, topology)
    run_steps(engine, config, range(1))
    before = full_values(engine)
    batches = microbatches(config, 1, engine.groups) if engine.needs_data else []
    if batches and engine.groups.data.rank == 1:
        batches[0] = dataclasses.replace(batches[0], loss_mask=batches[0].loss_mask * math.nan)
    taken = engine.train_step(batches, learning_rate=1e-2, consumed_samples=16).taken
    after = full_values(engine)
    unchanged = all(torch.equal(after[name], value) for name, value in before.items())
    return taken, unchanged, run_steps(engine, config, range(1, 2))[0]


def step_one_rank_refuses(config: TrainConfig, topology: Topology) -> tuple[bool, bool]:
    """Whether a step that one process's gate refuses was taken, and whether nothing changed."""
    engine = make_engine(config, topology)
    before = full_values(engine)
    batches = microbatches(config, 0, engine.groups) if engine.needs_data else []
    rank = engine.groups.world.rank
    result = engine.train_step(batches, learning_rate=1e-2, consumed_samples=0, gate=lambda loss, norm: rank != 1)
    after = full_values(engine)
    return result.taken, all(torch.equal(after[name], value) for name, value in before.items())


def trained_losses(config: TrainConfig, topology: Topology, steps: int) -> list[float]:
    engine = make_engine(config, topology)
    return run_steps(engine, config, range(steps))[0]


def carried_over(config: TrainConfig, topology: Topology) -> tuple[list[float], list[float]]:
    """Trains two engines; the second gets the first one's fragments after step 2, like a resume in memory."""
    engine, other = make_engine(config, topology), make_engine(config, topology)
    run_steps(engine, config, range(2))
    for mine, theirs in zip(other.fragments(), engine.fragments(), strict=True):
        assert (mine.name, mine.kind, mine.start) == (theirs.name, theirs.kind, theirs.start)
        mine.flat.copy_(theirs.flat)
    other.load_finished(optimizer_step=2)
    return run_steps(engine, config, range(2, 4))[0], run_steps(other, config, range(2, 4))[0]


def uneven_evaluation(config: TrainConfig, topology: Topology, count: int) -> list[float]:
    engine = make_engine(config, topology)
    batches = microbatches(config, 3, engine.groups)[:count] if engine.needs_data else []
    run_steps(engine, config, range(1))
    result = engine.eval_step(batches)
    return [*result.source_loss_sums.tolist(), *result.source_weights.tolist()]


def masters_of_a_fresh_engine(config: TrainConfig, topology: Topology) -> dict[str, torch.Tensor]:
    return {name: v for name, v in full_values(make_engine(config, topology)).items() if name.startswith("master.")}


def started(config: TrainConfig, topology: Topology) -> bool:
    return isinstance(make_engine(config, topology), PipelineEngine)


@pytest.mark.parametrize("precision", list(Precision))
def test_a_nan_on_one_replica_stops_every_process_and_changes_nothing(precision: Precision) -> None:
    config, topology = tiny_config(precision=precision), Topology(1, 2, 2)
    outcomes = run_ranks(poisoned_step, config, topology, world=4)
    expected = run_ranks(trained_losses, config, topology, 2, world=4)[0][1]
    for taken, unchanged, after in outcomes:
        assert not taken
        assert unchanged
        assert after == [expected], "what the bad step left behind leaked into the next"


def test_a_step_that_one_process_refuses_is_refused_by_all() -> None:
    outcomes = run_ranks(step_one_rank_refuses, tiny_config(), Topology(1, 2, 2), world=4)
    assert outcomes == [(False, True)] * 4


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("schedule", list(PipelineSchedule))
def test_fragments_carry_a_run_over_bitwise(precision: Precision, schedule: PipelineSchedule) -> None:
    config = tiny_config(precision=precision, pipeline_schedule=schedule)
    for losses, other_losses in run_ranks(carried_over, config, Topology(1, 2, 2), world=4):
        assert losses == other_losses


@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 1, 1), (1, 4, 1), (1, 1, 3), (2, 2, 1)], ids=str)
def test_the_initial_model_is_the_same_whatever_the_layout(layout: tuple[int, int, int]) -> None:
    config, topology = tiny_config(precision=Precision.BF16, global_batch=12), Topology(*layout)
    found = run_ranks(masters_of_a_fresh_engine, config, topology, world=topology.world_size)[0]
    expected = run_ranks(masters_of_a_fresh_engine, config, Topology(), world=1)[0]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("schedule", list(PipelineSchedule))
@pytest.mark.parametrize("count", [1, 3, 16])
def test_evaluation_takes_any_number_of_microbatches(schedule: PipelineSchedule, count: int) -> None:
    config = tiny_config(pipeline_schedule=schedule)
    found = run_ranks(uneven_evaluation, config, Topology(1, 2, 1), count, world=2)
    expected = run_ranks(uneven_evaluation, config, Topology(), count, world=1)[0]
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert found[0] == found[1]


def test_more_stages_than_layers_are_refused_before_anything_is_built() -> None:
    with pytest.raises(RankFailure, match=f"{TopologyError.__name__}: parallel.pipeline=4 needs at least 4 layers"):
        run_ranks(started, tiny_config(num_layers=1), Topology(1, 4, 1), world=4)
