"""The start-up gradient truth check: every split of one global batch agrees with one process, a wrong one is seen."""

import dataclasses
import itertools

import pytest
import torch

from megatron_poro.config.run import PipelineSchedule, Precision, Recompute, TrainConfig, TruthCheck
from megatron_poro.engine import build, truth
from megatron_poro.engine.build import build_engine, prove_gradients
from megatron_poro.engine.pipeline_engine import PipelineEngine
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.lanes import Inbox
from megatron_poro.parallel.topology import Topology
from megatron_poro.train.next_token import NextToken
from tests.support.ranks import run_ranks
from tests.support.tiny import CPU, full_values, tiny_config

SPLITS = [
    (tensor, pipeline, data, microbatch)
    for tensor, pipeline, data in itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 4, 8))
    if tensor * pipeline * data <= 8
    for microbatch in (1, 2, 4, 8)
    if data * microbatch <= 8
]
"""Every (TP, PP, DP, microbatch) of 8 samples on up to 8 processes, with 8 to 1 accumulation steps, that 4 heads and 6
layers allow."""


def check_many(config: TrainConfig, splits: list[tuple[int, int, int, int]]) -> list[float]:
    """Worst relative gradient difference of each split, all of them of the same number of processes."""
    worst = []
    for tensor, pipeline, data, microbatch in splits:
        split = dataclasses.replace(config, engine=dataclasses.replace(config.engine, microbatch_samples=microbatch))
        groups = ParallelGroups.create(Topology(tensor, pipeline, data))
        engine = build_engine(split, groups=groups, objective=NextToken, num_sources=1, device=CPU)
        assert isinstance(engine, PipelineEngine)
        worst.append(truth.compare_gradients(split, engine, objective=NextToken, device=CPU).relative)
    return worst


def prove(config: TrainConfig, topology: Topology, loss_factor: float = 1.0, tied_factor: float = 1.0) -> str:
    """The check as a run makes it, with a fault injected if a factor is not 1."""
    groups = ParallelGroups.create(topology)
    engine = build_engine(config, groups=groups, objective=NextToken, num_sources=1, device=CPU)
    assert isinstance(engine, PipelineEngine)
    before = full_values(engine)
    if loss_factor != 1.0 and groups.is_first_stage:
        # what DeepSpeed up to 0.19.2 did: one stage's gradients are scaled once too often
        sums = engine._gradient_sums
        original = sums.reduce

        def scaled() -> None:
            original()
            for _, gradient in sums.reduced():
                gradient.mul_(loss_factor)

        sums.reduce = scaled  # type: ignore[method-assign]
    if tied_factor != 1.0:
        # the two ends of the tied embedding do not exchange their gradients
        for bucket in engine._sharded.buckets:
            bucket.complete = lambda: None
    sentence = prove_gradients(config, engine, groups=groups, objective=NextToken, device=CPU)
    after = full_values(engine)
    assert all(torch.equal(after[name], value) for name, value in before.items()), "the check changed the model"
    return sentence


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_gradients_of_every_split_of_a_batch_are_those_of_one_process(world: int) -> None:
    splits = [split for split in SPLITS if split[0] * split[1] * split[2] == world]
    assert splits
    config = tiny_config(global_batch=8)
    for split, worst in zip(splits, run_ranks(check_many, config, splits, world=world)[0], strict=True):
        assert worst < 2e-5, f"TP, PP, DP, microbatch = {split}"


def test_dualpipev_gradients_are_those_of_one_process() -> None:
    config = tiny_config(pipeline_schedule=PipelineSchedule.DUALPIPEV)
    assert run_ranks(check_many, config, [(1, 2, 2, 1), (2, 2, 1, 2)], world=4)[0] == pytest.approx([0, 0], abs=2e-5)


def test_gradients_that_wait_are_those_of_one_process() -> None:
    splits = [(1, 4, 1, 1), (2, 2, 1, 2), (1, 2, 2, 1)]
    for deferred in (0, 1):
        assert run_ranks(check_many, tiny_config(deferred=deferred), splits, world=4)[0] == pytest.approx(
            [0, 0, 0], abs=2e-5
        )


def test_a_received_gradient_that_is_overwritten_while_it_is_waited_for_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As DeepSpeed does, which receives each into the buffer of the one before."""
    buffers: dict[int, torch.Tensor] = {}

    def overwritten(self: Inbox, like: torch.Tensor) -> torch.Tensor:
        message = take(self, like)
        return buffers.setdefault(id(self), message.clone()).copy_(message) if like.grad_fn else message

    take = Inbox.take
    monkeypatch.setattr(Inbox, "take", overwritten)
    with pytest.raises(AssertionError, match=r"the gradient of blocks.*mlp.down.* is not that of one process"):
        run_ranks(prove, tiny_config(deferred=2), Topology(1, 4, 1), world=4)


def test_bf16_stays_far_below_its_tolerance() -> None:
    worst = run_ranks(check_many, tiny_config(precision=Precision.BF16), [(2, 2, 1, 1)], world=4)[0]
    assert worst[0] < truth.TOLERANCE[Precision.BF16] / 3


@pytest.mark.parametrize("precision", list(Precision))
def test_a_stage_whose_gradients_are_scaled_is_refused(precision: Precision) -> None:
    with pytest.raises(AssertionError, match=r"is not that of one process"):
        run_ranks(prove, tiny_config(precision=precision), Topology(1, 2, 1), 0.5, world=2)


@pytest.mark.parametrize("precision", list(Precision))
def test_a_tied_embedding_that_does_not_exchange_gradients_is_refused(precision: Precision) -> None:
    with pytest.raises(AssertionError, match=r"the gradient of embedding.weight"):
        run_ranks(prove, tiny_config(precision=precision), Topology(1, 2, 1), 1.0, 0.0, world=2)


def test_the_check_says_what_it_compared_and_changes_nothing() -> None:
    config = tiny_config(hidden_dropout=0.1, attention_dropout=0.1)
    assert "the model at tensor=2 pipeline=1 data=1" in run_ranks(prove, config, Topology(2, 1, 1), world=2)[0]


def test_switched_off_it_compares_nothing() -> None:
    config = tiny_config()
    config.engine.truth_check = TruthCheck.OFF
    assert run_ranks(prove, config, Topology(1, 2, 1), 0.5, world=2)[0] == "gradient truth check: off"


def test_a_large_model_is_cut_down_and_a_fault_of_the_layout_still_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TRUTH_CHECK_PARAMETERS", 10)
    # more blocks of a rank are recomputed than the small model has there
    config = tiny_config(recompute=Recompute.FULL, recompute_blocks=[2, 0])
    assert "cut down" in run_ranks(prove, config, Topology(2, 2, 1), world=4)[0]
    # a fault in the loss itself, where every layout passes
    monkeypatch.setattr(NextToken, "weight", lambda self, targets: targets.loss_mask.sum() * 0 + targets.labels.numel())
    original = truth._true_gradients

    def honest(*arguments):  # type: ignore[no-untyped-def]
        monkeypatch.undo()
        return original(*arguments)

    monkeypatch.setattr(truth, "_true_gradients", honest)
    with pytest.raises(AssertionError, match=r"is not that of one process"):
        run_ranks(prove, tiny_config(), Topology(2, 2, 1), world=4)
