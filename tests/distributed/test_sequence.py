"""Sequence parallelism: layers and whole steps on cut sequences are those of one process.

Controls are plain PyTorch for the layers, ``LocalEngine`` for gradients, and the same layout without the cut for
trainings. What each rank computes of a norm's gradient is a part of it: without the sum over the tensor group the
comparison fails, which is shown too.
"""

import functools
import math
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from megatron_poro.config.run import EngineKind, PipelineSchedule, Precision, Recompute, TrainConfig
from megatron_poro.engine import build, truth
from megatron_poro.engine.buckets import Bucket
from megatron_poro.errors import EngineError
from megatron_poro.models.norms import LayerNorm
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.linear import ColumnParallelLinear, RowParallelLinear
from megatron_poro.parallel.shards import is_partial, shard_of
from megatron_poro.parallel.topology import Topology
from megatron_poro.parallel.vocab import VocabParallelEmbedding, vocab_parallel_head
from megatron_poro.planning.traffic import rank_traffic
from megatron_poro.train.peers import Peer
from megatron_poro.train.replicas import check_replicas
from tests.distributed.test_ladder import assert_same
from tests.distributed.test_tensor_layers import full, joined, tensor_group
from tests.distributed.test_truth import check_many, prove
from tests.support.ranks import RankFailure, run_ranks
from tests.support.tiny import Trained, make_engine, run_steps, tiny_config, train

SAME = {"atol": 2e-5, "rtol": 1e-5}


def positions(whole: torch.Tensor, group: AxisGroup) -> torch.Tensor:
    """This rank's part of a sequence ``[b, s, ...]``."""
    return whole.chunk(group.size, dim=1)[group.rank]


def whole_gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The full gradient, with the terms of partial ones added up."""
    assert parameter.grad is not None
    if is_partial(parameter):
        dist.all_reduce(parameter.grad)
    return joined(parameter, parameter.grad)


def residual_mlp(samples: int) -> None:
    group = tensor_group()
    modules = torch.nn.ModuleDict(
        {
            "norm": LayerNorm(6, epsilon=1e-5, stream=group),
            "up": ColumnParallelLinear(6, 8, group=group, init_std=1.0, sequence=True),
            "down": RowParallelLinear(8, 6, group=group, init_std=1.0, sequence=True),
        }
    )
    plain = {}
    for seed, (name, parameter) in enumerate(modules.named_parameters()):
        plain[name] = full(*shard_of(parameter).full_shape, seed=seed).requires_grad_()
        parameter.data.copy_(shard_of(parameter).cut(plain[name].detach()))
    target = full(samples, 8, 6, seed=21)
    x = positions(full(samples, 8, 6, seed=20), group).clone().requires_grad_()
    found = x + modules["down"](F.gelu(modules["up"](modules["norm"](x))))
    (found * positions(target, group)).sum().backward()

    y = full(samples, 8, 6, seed=20).requires_grad_()
    normed = F.layer_norm(y, (6,), plain["norm.weight"], plain["norm.bias"], 1e-5)
    hidden = F.gelu(F.linear(normed, plain["up.weight"], plain["up.bias"]))
    expected = y + F.linear(hidden, plain["down.weight"], plain["down.bias"])
    (expected * target).sum().backward()

    assert found.shape == (samples, 8 // group.size, 6)
    torch.testing.assert_close(found, positions(expected, group), **SAME)
    assert y.grad is not None
    torch.testing.assert_close(x.grad, positions(y.grad, group), **SAME)
    for name, parameter in modules.named_parameters():
        assert is_partial(parameter) == (group.size > 1 and name in ("norm.weight", "norm.bias", "down.bias"))
        torch.testing.assert_close(whole_gradient(parameter), plain[name].grad, **SAME)


def embedding_and_head(samples: int) -> None:
    group = tensor_group()
    embedding = VocabParallelEmbedding(16, 6, group=group, init_std=1.0, sequence=True)
    table = full(16, 6, seed=1)
    embedding.weight.data.copy_(shard_of(embedding.weight).cut(table))
    tokens = torch.randint(16, (samples, 8), generator=torch.Generator().manual_seed(2))
    target = full(samples, 8, 16, seed=3)
    embedded = embedding(tokens)
    logits = vocab_parallel_head(embedding, embedded)
    (logits * target.chunk(group.size, dim=-1)[group.rank]).sum().backward()

    plain = table.clone().requires_grad_()
    expected = F.linear(F.embedding(tokens, plain), plain)
    (expected * target).sum().backward()

    torch.testing.assert_close(embedded, positions(F.embedding(tokens, table), group))
    torch.testing.assert_close(logits, expected.chunk(group.size, dim=-1)[group.rank], **SAME)
    torch.testing.assert_close(whole_gradient(embedding.weight), plain.grad, **SAME)


def kept_for_backward() -> int:
    """Bytes that a column-parallel layer keeps, its weights left out."""
    up = ColumnParallelLinear(6, 8, group=tensor_group(), init_std=1.0, sequence=True)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    cut = torch.randn(2, 4, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        up(cut)
    own = {parameter.untyped_storage().data_ptr() for parameter in up.parameters()}
    return sum(size for storage, size in kept.items() if storage not in own)


def sequence_that_does_not_divide() -> None:
    RowParallelLinear(4, 4, group=tensor_group(), init_std=1.0, sequence=True)(torch.ones(1, 5, 2))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_norm_and_mlp_on_cut_sequences_equal_plain_ones(world: int, samples: int) -> None:
    run_ranks(residual_mlp, samples, world=world)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_embedding_and_head_on_cut_sequences_equal_plain_ones(world: int, samples: int) -> None:
    run_ranks(embedding_and_head, samples, world=world)


def test_a_column_parallel_layer_keeps_its_cut_input_only() -> None:
    assert run_ranks(kept_for_backward, world=2) == [2 * 4 * 6 * 4] * 2


def test_a_sequence_that_the_group_does_not_divide_is_refused() -> None:
    with pytest.raises(RankFailure, match="parallel.tensor=2 does not divide the 5 tokens of a sample"):
        run_ranks(sequence_that_does_not_divide, world=2)


def worst_of(config: TrainConfig, *splits: tuple[int, int, int, int]) -> list[float]:
    world = math.prod(splits[0][:3])
    return run_ranks(check_many, config, list(splits), world=world)[0]


@pytest.mark.parametrize("recompute", list(Recompute))
def test_gradients_of_any_recomputation_are_those_of_one_process(recompute: Recompute) -> None:
    config = tiny_config(global_batch=8, sequence=True, recompute=recompute)
    assert worst_of(config, (2, 1, 1, 2)) == pytest.approx([0], abs=2e-5)
    assert worst_of(config, (2, 2, 1, 1), (4, 1, 1, 2)) == pytest.approx([0, 0], abs=2e-5)


def test_gradients_of_all_axes_together_are_those_of_one_process() -> None:
    assert worst_of(tiny_config(global_batch=8, sequence=True), (2, 2, 2, 1), (4, 2, 1, 2)) == pytest.approx(
        [0, 0], abs=2e-5
    )


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.FULL])
def test_gradients_under_dualpipev_are_those_of_one_process(precision: Precision, recompute: Recompute) -> None:
    config = tiny_config(
        sequence=True, precision=precision, recompute=recompute, pipeline_schedule=PipelineSchedule.DUALPIPEV
    )
    tolerance = 2e-5 if precision is Precision.FP32 else truth.TOLERANCE[precision] / 3
    assert worst_of(config, (2, 2, 1, 2)) == pytest.approx([0], abs=tolerance)


def test_bf16_stays_far_below_its_tolerance() -> None:
    config = tiny_config(precision=Precision.BF16, sequence=True)
    worst = worst_of(config, (2, 2, 1, 1), (4, 1, 1, 2))
    assert max(worst) < truth.TOLERANCE[Precision.BF16] / 3


@pytest.mark.parametrize("precision", list(Precision))
def test_partial_gradients_that_nobody_adds_up_are_seen(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bucket, "complete", lambda bucket: None)
    with pytest.raises(RankFailure, match=rf"{EngineError.__name__}: the gradient of \S*(norm|bias)\S* on rank"):
        worst_of(tiny_config(precision=precision, sequence=True), (2, 1, 1, 2))


def test_partial_gradients_that_are_added_up_twice_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    once = Bucket.complete

    def twice(bucket: Bucket) -> None:
        once(bucket)
        once(bucket)

    monkeypatch.setattr(Bucket, "complete", twice)
    with pytest.raises(RankFailure, match="is not that of one process"):
        worst_of(tiny_config(sequence=True), (2, 2, 1, 2))


def test_the_start_up_check_cuts_a_large_model_down_to_a_length_that_can_be_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "TRUTH_CHECK_PARAMETERS", 10)
    config = tiny_config(sequence=True, num_heads=3, hidden_size=24, vocab_size=66)
    config.data.sequence_length = 72  # 3 divides it, but not the 64 that other models are cut down to
    assert "cut down" in run_ranks(prove, config, Topology(3, 1, 1), world=3)[0]


@functools.cache
def control(precision: Precision, layout: tuple[int, int, int], dropout: float = 0.0) -> Trained:
    """The same training without the cut; in one process for 1 x 1 x 1."""
    if layout == (1, 1, 1):
        return train(tiny_config(kind=EngineKind.LOCAL, precision=precision, hidden_dropout=dropout))
    return at_layout(tiny_config(precision=precision, hidden_dropout=dropout), layout)


def at_layout(config: TrainConfig, layout: tuple[int, int, int]) -> Trained:
    topology = Topology(*layout)
    return run_ranks(train, config, topology, world=topology.world_size)[0]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_training_equals_one_process_and_the_layout_without_the_cut(dropout: float) -> None:
    config = tiny_config(sequence=True, recompute=Recompute.FULL, hidden_dropout=dropout)
    found = at_layout(config, (2, 2, 1))
    for layout in ((1, 1, 1), (2, 2, 1)):
        assert_same(found, control(Precision.FP32, layout, dropout), tolerance=1e-4, weights=5e-4)


def test_a_bf16_training_equals_one_process_and_the_layout_without_the_cut() -> None:
    found = at_layout(tiny_config(sequence=True, precision=Precision.BF16), (2, 2, 1))
    for layout in ((1, 1, 1), (2, 2, 1)):
        expected = control(Precision.BF16, layout)
        assert found.losses == pytest.approx(expected.losses, rel=5e-3)
        assert found.norms == pytest.approx(expected.norms, rel=2e-2)


def copies_after_steps(config: TrainConfig, topology: Topology) -> None:
    engine = make_engine(config, topology)
    peers = engine.groups.world.gather(Peer.this_process(engine.groups.world.rank))
    for step in range(3):
        run_steps(engine, config, range(step, step + 1))
        check_replicas(engine, step=step, peers=peers)  # raises where two copies differ in a bit


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("reproducible", [False, True])
def test_all_copies_of_norms_and_biases_stay_the_same_bits(precision: Precision, reproducible: bool) -> None:
    config = tiny_config(sequence=True, precision=precision, reproducible=reproducible)
    run_ranks(copies_after_steps, config, Topology(2, 1, 2), world=4)


@pytest.mark.parametrize("precision", list(Precision))
def test_reproducible_runs_do_not_depend_on_the_rest_of_the_layout(precision: Precision) -> None:
    config = tiny_config(sequence=True, precision=precision, reproducible=True, hidden_dropout=0.1)
    expected = at_layout(config, (2, 1, 1))
    for layout in ((2, 2, 1), (2, 1, 2)):
        found = at_layout(config, layout)
        assert found[:-1] == expected[:-1]
        assert all(torch.equal(found.values[name], value) for name, value in expected.values.items())
    assert expected.losses == pytest.approx(control(precision, (1, 1, 1), 0.1).losses, rel=5e-3)


def sent_over_the_tensor_group(config: TrainConfig, topology: Topology) -> float:
    """Bytes that a ring would send for the collectives of one step on this rank."""
    engine, sent = make_engine(config, topology), Counter[str]()
    group = engine.groups.tensor
    share = (group.size - 1) / group.size

    def counting(name: str, factor: float, whole: int):  # type: ignore[no-untyped-def]
        original = getattr(dist, name)

        def run(*tensors, **options):  # type: ignore[no-untyped-def]
            # gradients over replicas, losses and flags are of other groups
            if options.get("group") is group.process_group:
                sent[name] += factor * share * tensors[whole].numel() * tensors[whole].element_size()
            return original(*tensors, **options)

        return run

    before = {name: getattr(dist, name) for name in ("all_reduce", "all_gather_single", "reduce_scatter_single")}
    try:
        dist.all_reduce = counting("all_reduce", 2.0, 0)  # type: ignore[assignment]
        dist.all_gather_single = counting("all_gather_single", 1.0, 0)
        dist.reduce_scatter_single = counting("reduce_scatter_single", 1.0, 1)
        run_steps(engine, config, range(1))
    finally:
        for name, function in before.items():
            setattr(dist, name, function)
    return sum(sent.values())


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("precision", list(Precision))
def test_as_many_bytes_are_sent_as_are_planned(precision: Precision, cut: bool) -> None:
    config = tiny_config(precision=precision, sequence=cut)
    for layout in ((2, 2, 1), (4, 1, 1)):
        config.parallel.tensor, config.parallel.pipeline, config.parallel.data = layout
        sent = run_ranks(sent_over_the_tensor_group, config, Topology(*layout), world=4)
        planned = [traffic.tensor for traffic in rank_traffic(config, world_size=4)]
        assert sent[:: layout[0]] == pytest.approx(planned)


def test_a_group_of_one_keeps_plain_layers() -> None:
    single = AxisGroup.single()
    up = ColumnParallelLinear(4, 4, group=single, init_std=1.0, sequence=True)
    torch.nn.init.normal_(up.weight)
    x = torch.ones(1, 3, 4)  # no process group, a length that nothing divides
    assert torch.equal(up(x), F.linear(x, up.weight, up.bias))
    assert not any(is_partial(parameter) for parameter in LayerNorm(4, epsilon=1e-5, stream=single).parameters())
