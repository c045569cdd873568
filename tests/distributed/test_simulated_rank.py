"""A simulated rank does what a rank of real processes does; where a layer is wrong it fails."""

import dataclasses
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_poro.config.run import AttentionBackend, PipelineSchedule, Precision, Recompute, TrainConfig
from megatron_poro.errors import ConfigError, EngineError
from megatron_poro.models import bloom
from megatron_poro.models.init import weight_dtype
from megatron_poro.parallel.collectives import all_reduce
from megatron_poro.planning.memory import rank_memory
from megatron_poro.planning.traffic import rank_traffic
from megatron_poro.simulation.rank import SimulatedRank, observe_rank, simulate_rank
from tests.support.ranks import run_ranks
from tests.support.tiny import tiny_config

FLASH = AttentionBackend.FLASH


def laid_out(tensor: int, pipeline: int, data: int, *, sequence: bool = False, **options: Any) -> TrainConfig:
    """The tiny model at a layout, in bf16 unless said otherwise."""
    config = tiny_config(**{"precision": Precision.BF16, **options})
    parallel = dataclasses.replace(config.parallel, tensor=tensor, pipeline=pipeline, data=data, sequence=sequence)
    return dataclasses.replace(config, parallel=parallel)


def simulated(config: TrainConfig, rank: int, world_size: int = 4) -> SimulatedRank:
    return simulate_rank(config, rank=rank, world_size=world_size, backend=config.engine.attention)


@pytest.mark.parametrize(
    "config",
    [
        laid_out(2, 2, 1, recompute=Recompute.FULL),
        laid_out(2, 2, 1, recompute=Recompute.FULL, sequence=True),
        laid_out(1, 4, 1, attention=AttentionBackend.FLASH),
        laid_out(1, 2, 2, precision=Precision.FP32),
        laid_out(2, 1, 2, recompute=Recompute.SELECTIVE, attention_dropout=0.1, hidden_dropout=0.1),
        laid_out(1, 2, 2, pipeline_schedule=PipelineSchedule.DUALPIPEV),
        laid_out(1, 4, 1, deferred=3),
        laid_out(2, 2, 1, deferred=1, recompute=Recompute.FULL, sequence=True),
    ],
    ids=[
        "tensor2-pipeline2",
        "sequence",
        "pipeline4",
        "pipeline2-data2-fp32",
        "tensor2-data2-dropout",
        "dualpipev",
        "pipeline4-deferred",
        "sequence-deferred",
    ],
)
def test_a_simulated_rank_sends_and_holds_what_a_real_one_does(config: TrainConfig) -> None:
    """Every call in its order, with shape and format; the peak of the memory within two thousandths, or one tensor that
    was summed: gloo's thread lets go of it a moment after it has said that the sum is there.
    """
    everyone = run_ranks(observe_rank, config, world=4)
    for rank in (0, 3):
        dry, real = simulated(config, rank), everyone[rank]
        assert (dry.rank, dry.layers, dry.num_parameters) == (rank, real.layers, real.num_parameters)
        assert dry.building == real.building
        assert dry.step == real.step
        assert dry.taken
        summed = max((one.size_bytes for one in real.step if real.axis(one) == "tensor"), default=0)
        assert dry.peak_bytes == pytest.approx(real.peak_bytes, rel=2e-3, abs=summed)
        assert dry.parts["gradients"] == real.parts["gradients"]


WIDE: dict[str, Any] = {"hidden_size": 128, "num_heads": 4, "vocab_size": 512, "microbatch": 2, "num_layers": 6}


@pytest.mark.parametrize(
    "config",
    [
        laid_out(2, 2, 1, recompute=Recompute.FULL, **WIDE),
        laid_out(2, 2, 1, recompute=Recompute.SELECTIVE, recompute_blocks=[2, 0], attention=FLASH, **WIDE),
        laid_out(2, 2, 1, sequence=True, hidden_dropout=0.1, attention_dropout=0.1, **WIDE),
        laid_out(1, 4, 1, precision=Precision.FP32, attention=AttentionBackend.SDPA, **WIDE),
        laid_out(2, 1, 2, recompute=Recompute.FULL, recompute_blocks=[3], **WIDE),
        laid_out(1, 2, 2, pipeline_schedule=PipelineSchedule.DUALPIPEV, attention=FLASH, **WIDE),
        laid_out(1, 4, 1, deferred=3, attention=FLASH, **WIDE),
        laid_out(2, 2, 1, deferred=1, sequence=True, recompute=Recompute.FULL, **WIDE),
        laid_out(1, 4, 1, deferred=1, reproducible=True, **WIDE),
        laid_out(2, 2, 1, reproducible=True, recompute=Recompute.FULL, **WIDE),
        laid_out(1, 2, 2, reproducible=True, **WIDE),
        laid_out(1, 1, 4, reproducible=True, precision=Precision.FP32, recompute=Recompute.FULL, **WIDE),
    ],
    ids=[
        "full",
        "some",
        "sequence",
        "pipeline4-sdpa-fp32",
        "one-stage",
        "dualpipev",
        "deferred",
        "deferred-sequence",
        "deferred-reproducible",
        "reproducible",
        "reproducible-replicas",
        "reproducible-fp32",
    ],
)
def test_real_ranks_hold_the_bytes_that_are_planned(config: TrainConfig) -> None:
    """Tensors of real processes, counted while they live: each of four is within 2 % of the plan."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sequence_length=128))
    planned = rank_memory(config, world_size=4, backend=config.engine.attention)
    for seen in run_ranks(observe_rank, config, world=4):
        assert planned[seen.coordinate.pipeline].total == pytest.approx(seen.peak_bytes, rel=0.02), seen.rank


@pytest.mark.parametrize("sequence", [False, True])
def test_the_plan_counts_every_byte_of_a_tensor_group(sequence: bool) -> None:
    config = laid_out(2, 2, 1, recompute=Recompute.FULL, sequence=sequence)
    for rank in (0, 3):
        seen = simulated(config, rank)
        sent = sum(one.sent_bytes(rank) for one in seen.step if seen.axis(one) == "tensor")
        assert sent == rank_traffic(config, world_size=4)[seen.coordinate.pipeline].tensor


def test_a_layer_of_a_wrong_shape_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloom.BloomMLP, "forward", lambda self, hidden: self.up(hidden))
    with pytest.raises(RuntimeError, match=r"had torch.Size\(\[1, 16, 64\]\); but expected .* \[1, 16, 32\]"):
        simulated(laid_out(2, 2, 1), 3)


def test_a_stage_that_sends_a_wrong_shape_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    run = bloom.BloomBlock._run
    monkeypatch.setattr(
        bloom.BloomBlock, "_run", lambda self, hidden, key: run(self, hidden, key).transpose(0, 1).clone()
    )
    sentence = r"rank 0 has a send of shape \[16, 1, 32\] with rank 2, which expects \[1, 16, 32\]"
    with pytest.raises(EngineError, match=sentence):
        simulated(laid_out(2, 2, 1, num_layers=2), 0)


def test_a_sum_that_the_plan_forgot_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    config = laid_out(2, 2, 1)
    planned = rank_traffic(config, world_size=4)[1].tensor
    forward = bloom.BloomMLP.forward

    def with_another_sum(self: bloom.BloomMLP, hidden: Tensor) -> Tensor:
        all_reduce(torch.zeros_like(hidden), self.down.group)
        return forward(self, hidden)

    def sent() -> float:
        seen = simulated(config, 2)
        return sum(one.sent_bytes(2) for one in seen.step if seen.axis(one) == "tensor")

    assert sent() == planned
    monkeypatch.setattr(bloom.BloomMLP, "forward", with_another_sum)
    assert sent() > planned


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("sequence", [False, True])
def test_the_plan_counts_what_replicas_and_ends_of_the_tie_send(precision: Precision, sequence: bool) -> None:
    """Gradients are scattered in fp32, weights gathered in their format; what is not planned is padding and numbers."""
    config = laid_out(2, 2, 2, precision=precision, sequence=sequence)
    for rank in (0, 7):
        seen, planned = simulated(config, rank, 8), rank_traffic(config, world_size=8)[rank // 4]
        of_replicas = [one for one in seen.step if seen.axis(one) == "data"]
        assert {one.kind for one in of_replicas} == {"reduce_scatter", "allgather", "allreduce"}
        assert {one.dtype for one in of_replicas if one.kind == "reduce_scatter"} == {torch.float32}
        assert {one.dtype for one in of_replicas if one.kind == "allgather"} == {weight_dtype(precision)}
        sent = sum(one.sent_bytes(rank) for one in of_replicas if one.kind != "allreduce")
        assert sent == pytest.approx(planned.data, abs=64)
        assert all(one.size_bytes <= 3 * 4 for one in of_replicas if one.kind == "allreduce"), "squares and losses"
        assert sum(one.sent_bytes(rank) for one in seen.step if seen.axis(one) == "tie") == planned.tie > 0
        over_tensor = sum(one.sent_bytes(rank) for one in seen.step if seen.axis(one) == "tensor")
        assert over_tensor == pytest.approx(planned.tensor, abs=64)


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_the_grid_is_refused(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"--simulate-rank {rank} is outside the grid of 4 processes. Use 0 to 3."):
        simulated(laid_out(2, 2, 1), rank)


def test_a_reproducible_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="engine.reproducible=true cannot be simulated"):
        simulated(laid_out(2, 2, 1, reproducible=True), 0)


def test_nothing_is_left_behind() -> None:
    """No process group, no fake tensor and no rank in the environment, which a real step in the process would meet."""
    environment = dict(os.environ)
    simulated(laid_out(1, 1, 4), 0)
    assert dict(os.environ) == environment
    assert not torch.distributed.is_initialized()
    assert type(torch.nn.Linear(2, 2).to(torch.bfloat16).weight) is torch.nn.Parameter
    assert type(bloom.attention.__globals__["_future"](16, torch.device("cpu"))) is Tensor
