"""ShardSpec: cut and join are inverse, and a shard knows where it stands in the full tensor."""

import pytest
import torch

from megatron_poro.parallel.shards import Initial, ShardSpec, new_parameter, shard_of


@pytest.mark.parametrize("dim", [0, 1])
def test_join_undoes_cut(dim: int) -> None:
    full = torch.arange(24.0).view(4, 6)
    shards = [ShardSpec((4, 6), dim, rank, 2) for rank in range(2)]
    parts = [shard.cut(full) for shard in shards]
    assert [tuple(part.shape) for part in parts] == [shard.shape for shard in shards]
    assert torch.equal(shards[0].join(parts), full)


def test_a_shard_knows_its_origin() -> None:
    shard = ShardSpec((4, 6), 1, 1, 2)
    full = torch.arange(24.0).view(4, 6)
    assert shard.origin == (0, 3)
    assert shard.cut(full)[0, 0] == full[shard.origin]


def test_a_replicated_tensor_is_its_own_shard() -> None:
    full = torch.arange(5.0)
    shard = ShardSpec((5,))
    assert (shard.shape, shard.origin) == ((5,), (0,))
    assert torch.equal(shard.join([shard.cut(full), torch.zeros(5)]), full)


def test_cutting_a_tensor_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(4, 6\), got \(6, 4\)"):
        ShardSpec((4, 6), 0, 0, 2).cut(torch.zeros(6, 4))


def test_a_parameter_carries_its_note() -> None:
    cut = new_parameter(ShardSpec((4, 6), 0, 1, 2), Initial(std=1.0))
    assert shard_of(cut).origin == (2, 0)
    with pytest.raises(AssertionError, match="carries no ShardSpec"):
        shard_of(torch.nn.Parameter(torch.zeros(2)))
