"""Initial weights are one full tensor, however it is cut."""

import pytest
import torch

from megatron_poro.models import init
from megatron_poro.models.causal_lm import whole_model
from megatron_poro.models.init import fill_initial
from megatron_poro.parallel.shards import Initial, ShardSpec
from tests.support.tiny import TINY

HALF = Initial(std=0.5)


def drawn(shard: ShardSpec, *, name: str = "w", seed: int = 1, initial: Initial = HALF) -> torch.Tensor:
    out = torch.empty(shard.shape)
    fill_initial(out, shard, initial, name=name, seed=seed)
    return out


@pytest.mark.parametrize("block_elements", [7, 30, 1 << 20])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_shards_are_slices_of_one_tensor(
    block_elements: int, dim: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "BLOCK_ELEMENTS", block_elements)
    whole = drawn(ShardSpec((12, 8)))
    parts = [drawn(ShardSpec((12, 8), dim, rank, size)) for rank in range(size)]
    assert torch.equal(torch.cat(parts, dim=dim), whole)


def test_names_and_seeds_draw_other_tensors() -> None:
    shard = ShardSpec((6, 6))
    assert not torch.equal(drawn(shard, name="a"), drawn(shard, name="b"))
    assert not torch.equal(drawn(shard, seed=1), drawn(shard, seed=2))
    assert torch.equal(drawn(shard), drawn(shard))


def test_rows_of_different_blocks_differ() -> None:
    tall = drawn(ShardSpec((3, 1 << 20)))
    assert not torch.equal(tall[0], tall[1])


def test_initial_distribution_of_a_model() -> None:
    model = whole_model(TINY, seed=3)
    named = dict(model.named_parameters())
    std, scaled = TINY.init_std, TINY.init_std / (2 * TINY.num_layers) ** 0.5
    assert float(named["embedding.weight"].std()) == pytest.approx(std, rel=0.1)
    assert float(named["blocks.0.attention.qkv.weight"].std()) == pytest.approx(std, rel=0.1)
    assert float(named["blocks.0.attention.out.weight"].std()) == pytest.approx(scaled, rel=0.1)
    assert float(named["blocks.0.mlp.down.weight"].std()) == pytest.approx(scaled, rel=0.1)
    for name, parameter in named.items():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif name.endswith("norm.weight"):
            assert bool((parameter == 1).all()), name


def test_poro_starts_by_repeating_the_current_token() -> None:
    """Small init with a tied head makes the first loss far higher than ln(vocabulary): facts of the original run."""
    wide = whole_model(type(TINY)(num_layers=2, hidden_size=512, num_heads=4, vocab_size=256, init_std=0.0048), seed=1)
    tokens = torch.arange(200).view(1, -1)
    with torch.no_grad():
        logits = wide(tokens)
    assert torch.equal(logits.argmax(-1), tokens)
