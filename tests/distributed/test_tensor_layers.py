"""Tensor-parallel layers against plain PyTorch: outputs, input gradients and weight gradients, joined by ShardSpec."""

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_poro.parallel.collectives import Arriving, all_reduce
from megatron_poro.parallel.groups import AxisGroup, ParallelGroups
from megatron_poro.parallel.linear import ColumnParallelLinear, RowParallelLinear, linear_of_whole_input
from megatron_poro.parallel.shards import shard_of
from megatron_poro.parallel.topology import Topology
from megatron_poro.parallel.vocab import (
    VocabParallelEmbedding,
    vocab_parallel_cross_entropy,
    vocab_parallel_head,
)
from tests.support.ranks import RankFailure, run_ranks


def full(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensor_group() -> AxisGroup:
    return ParallelGroups.create(Topology(tensor=dist.get_world_size())).tensor


def joined(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> torch.Tensor:
    """The full gradient from all ranks' slices; a replicated one must be equal on all ranks."""
    parts = [torch.empty_like(gradient) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, gradient.contiguous())
    if shard_of(parameter).dim is None:
        assert all(torch.equal(part, parts[0]) for part in parts), "a replicated gradient differs between tensor ranks"
    return shard_of(parameter).join(parts)


def mlp() -> None:
    group = tensor_group()
    up = ColumnParallelLinear(6, 8, group=group, init_std=1.0)
    down = RowParallelLinear(8, 6, group=group, init_std=1.0)
    weights = {"up.weight": full(8, 6, seed=1), "up.bias": full(8, seed=2), "down.weight": full(6, 8, seed=3)}
    weights["down.bias"] = full(6, seed=4)
    modules = torch.nn.ModuleDict({"up": up, "down": down})
    for name, parameter in modules.named_parameters():
        parameter.data.copy_(shard_of(parameter).cut(weights[name]))
    x = full(2, 5, 6, seed=5).requires_grad_()
    down(F.gelu(up(x))).square().sum().backward()

    plain = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    y = full(2, 5, 6, seed=5).requires_grad_()
    hidden = F.gelu(F.linear(y, plain["up.weight"], plain["up.bias"]))
    F.linear(hidden, plain["down.weight"], plain["down.bias"]).square().sum().backward()

    torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)
    for name, parameter in modules.named_parameters():
        torch.testing.assert_close(joined(parameter, parameter.grad), plain[name].grad, atol=1e-4, rtol=1e-4)


def vocabulary(dtype: torch.dtype) -> None:
    group = tensor_group()
    embedding = VocabParallelEmbedding(16, 6, group=group, init_std=1.0)
    table = full(16, 6, seed=1)
    embedding.weight.data.copy_(shard_of(embedding.weight).cut(table))
    tokens = torch.randint(16, (2, 7), generator=torch.Generator().manual_seed(2))
    labels = torch.randint(16, (2, 7), generator=torch.Generator().manual_seed(3))
    weight = torch.rand(2, 7, generator=torch.Generator().manual_seed(4))
    embedded = embedding(tokens)
    logits = (vocab_parallel_head(embedding, embedded) * 20).to(dtype)
    loss = vocab_parallel_cross_entropy(logits, labels, group)
    (loss * weight).sum().backward()

    plain = table.clone().requires_grad_()
    expected_embedded = F.embedding(tokens, plain)
    expected = F.linear(expected_embedded, plain) * 20
    expected_loss = F.cross_entropy(expected.to(dtype).float().transpose(1, 2), labels, reduction="none")
    (expected_loss * weight).sum().backward()

    assert loss.dtype == torch.float32
    assert logits.shape[-1] == 16 // group.size, "the vocabulary was gathered"
    torch.testing.assert_close(embedded, expected_embedded)
    torch.testing.assert_close(loss, expected_loss)
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 0.5, "rtol": 0.05}
    torch.testing.assert_close(joined(embedding.weight, embedding.weight.grad), plain.grad, **tolerance)


def entrance(dtype: torch.dtype, with_bias: bool) -> None:
    """Autograd's own gradients of a plain layer, the input's summed afterwards, are the control."""
    group = tensor_group()
    weight, bias = full(8, 6, seed=1 + group.rank).to(dtype), full(8, seed=3 + group.rank).to(dtype)
    arguments = [full(2, 5, 6, seed=5).to(dtype), weight, *([bias] if with_bias else [])]
    found, plain = ([tensor.clone().requires_grad_() for tensor in arguments] for _ in range(2))
    output = linear_of_whole_input(found[0], found[1], found[2] if with_bias else None, group)
    expected = F.linear(*plain)
    direction = full(*output.shape, seed=6 + group.rank).to(dtype)
    for one in (output, expected):
        one.backward(direction)
    all_reduce(plain[0].grad, group)
    for one, other in ((output, expected), *((a.grad, b.grad) for a, b in zip(found, plain, strict=True))):
        assert torch.equal(one, other)


class Order(TorchDispatchMode):
    """Notes products, sums and waits in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.rpartition("::")[2]
        if name in ("mm", "allreduce_"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def order_of_the_backward_pass() -> list[str]:
    group = tensor_group()
    up = ColumnParallelLinear(6, 8, group=group, init_std=1.0)
    output = up(full(2, 5, 6, seed=5).requires_grad_())
    order, wait = Order(), Arriving.wait

    def waits(arriving: Arriving) -> torch.Tensor:
        order.seen.append("wait")
        return wait(arriving)

    with mock.patch.object(Arriving, "wait", waits), order:
        output.sum().backward()
    return order.seen


def huge_logits() -> float:
    """Exp would overflow without the shift by the global maximum, which only one rank holds."""
    group = tensor_group()
    logits = torch.zeros(1, 1, 4)
    if group.rank == 0:
        logits[0, 0, 0] = 1e4
    return float(vocab_parallel_cross_entropy(logits, torch.tensor([[0]]), group))


def groups_of_wrong_size() -> None:
    ParallelGroups.create(Topology(tensor=3))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_column_then_row_equals_plain_mlp(world: int) -> None:
    run_ranks(mlp, world=world)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_entrance_has_the_bits_of_a_plain_layer_and_a_sum(dtype: torch.dtype, with_bias: bool) -> None:
    run_ranks(entrance, dtype, with_bias, world=2)


def test_the_sum_at_an_entrance_is_under_way_beside_the_gradient_of_the_weight() -> None:
    assert run_ranks(order_of_the_backward_pass, world=2) == [["mm", "allreduce_", "mm", "wait"]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_embedding_head_and_cross_entropy_equal_plain_ones(world: int, dtype: torch.dtype) -> None:
    run_ranks(vocabulary, dtype, world=world)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    assert run_ranks(huge_logits, world=2) == [0.0, 0.0]


def test_a_grid_that_is_not_the_number_of_processes_is_refused() -> None:
    with pytest.raises(RankFailure, match="the grid tensor=3 pipeline=1 data=1 needs 3 processes, 2 are running"):
        run_ranks(groups_of_wrong_size, world=2)
