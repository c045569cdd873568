"""All attention kernels compute what the eager reference does, forward and backward."""

import math
from functools import partial

import pytest
import torch

from megatron_poro.config.model import AlibiForm
from megatron_poro.config.run import AttentionBackend, Precision
from megatron_poro.errors import ConfigError
from megatron_poro.models.alibi import Alibi
from megatron_poro.models.attention import attention
from megatron_poro.models.kernel_choice import choose_kernel
from megatron_poro.models.tiles import MOST_TILES, SMALLEST_TILE, pairs_in_tiles, tile_bounds
from megatron_poro.parallel.groups import AxisGroup

CPU = torch.device("cpu")


def run(backend: AttentionBackend, form: AlibiForm, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 17, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    alibi = Alibi(3, form=form, group=AxisGroup.single())
    out = attention(*inputs, alibi, backend=backend)
    out.float().square().sum().backward()
    return [out.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]


@pytest.mark.parametrize("form", list(AlibiForm))
@pytest.mark.parametrize("backend", [AttentionBackend.SDPA, AttentionBackend.FLASH, AttentionBackend.TILED])
def test_fused_kernels_equal_eager(backend: AttentionBackend, form: AlibiForm) -> None:
    for found, expected in zip(run(backend, form), run(AttentionBackend.EAGER, form), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", [AttentionBackend.SDPA, AttentionBackend.FLASH, AttentionBackend.TILED])
def test_bf16_kernels_are_near_the_fp32_reference(backend: AttentionBackend) -> None:
    found = run(backend, AlibiForm.DISTANCE, torch.bfloat16)[0].float()
    torch.testing.assert_close(found, run(AttentionBackend.EAGER, AlibiForm.DISTANCE)[0], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("form", list(AlibiForm))
def test_gradients_of_rounded_weights_are_as_near_fp64_as_those_of_weights_in_fp32(form: AlibiForm) -> None:
    """Against autograd of the formula, with the weights kept in fp32 as a control."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 4, 64, 32, generator=generator).bfloat16() for _ in range(3))
    alibi = Alibi(4, form=form, group=AxisGroup.single())
    future = torch.ones(64, 64, dtype=torch.bool).triu(1)

    def gradients(formula, dtype: torch.dtype) -> torch.Tensor:  # type: ignore[no-untyped-def]
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (query, key, value)]
        formula(*inputs).sin().sum().backward()
        return torch.stack([tensor.grad.double() for tensor in inputs if tensor.grad is not None])

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        in_fp32 = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32)) / math.sqrt(32)
        scores = (in_fp32 + alibi.bias(64, CPU)).masked_fill(future, -torch.inf)
        return scores.softmax(dim=-1).to(query.dtype) @ value

    truth = gradients(plain, torch.float64)
    control = (gradients(plain, torch.bfloat16) - truth).square().mean().sqrt()
    ours = (gradients(partial(attention, alibi=alibi, backend=AttentionBackend.EAGER), torch.bfloat16) - truth).square()
    assert ours.mean().sqrt() < 1.1 * control


@pytest.mark.parametrize("backend", [AttentionBackend.FLASH, AttentionBackend.TILED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", list(AlibiForm))
def test_flash_is_as_exact_as_eager_at_poros_length_and_head_size(
    form: AlibiForm, dtype: torch.dtype, backend: AttentionBackend
) -> None:
    """Both against fp64; steep slopes far from the diagonal are where a rounded bias would show."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 8, 2048, 128, generator=generator).to(dtype) for _ in range(3))
    alibi = Alibi(8, form=form, group=AxisGroup.single())
    bias = alibi.bias(2048, CPU).double().expand(-1, 2048, -1)
    bias = bias.masked_fill(torch.ones(2048, 2048, dtype=torch.bool).triu(1), -torch.inf)
    scores = query.double() @ key.double().transpose(-1, -2) / math.sqrt(128) + bias
    truth = scores.softmax(dim=-1) @ value.double()
    error = {
        kernel: (attention(query, key, value, alibi, backend=kernel).double() - truth).abs().max().item()
        for kernel in (AttentionBackend.EAGER, backend)
    }
    limit = {torch.float32: 1e-4, torch.bfloat16: 0.02}[dtype]
    assert error[backend] < max(limit, 1.5 * error[AttentionBackend.EAGER])


def test_flex_forward_equals_eager_where_it_runs() -> None:
    """The kernel's own formula without its compiler: torch 2.13 has no CPU backward, so only the forward is checked."""
    from torch.nn.attention.flex_attention import flex_attention

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 3, 16, 8, generator=generator) for _ in range(3))
    alibi = Alibi(3, form=AlibiForm.DISTANCE, group=AxisGroup.single())

    def biased(score, batch, head, row, column):  # type: ignore[no-untyped-def]
        return torch.where(row >= column, score + alibi.slopes[head] * (column - row), -torch.inf)

    expected = attention(query, key, value, alibi, backend=AttentionBackend.EAGER)
    torch.testing.assert_close(flex_attention(query, key, value, score_mod=biased), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", list(AlibiForm))
def test_tiles_equal_eager_over_the_edges_of_tiles_forward_and_backward(form: AlibiForm) -> None:
    length = 2 * SMALLEST_TILE + 3
    assert [last for _, last in tile_bounds(length)] == [SMALLEST_TILE, 2 * SMALLEST_TILE, length]
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(2, 3, length, 8, generator=generator) for _ in range(3)]
    alibi = Alibi(3, form=form, group=AxisGroup.single())
    found = {}
    for backend in (AttentionBackend.EAGER, AttentionBackend.TILED):
        own = [tensor.clone().requires_grad_() for tensor in inputs]
        result = attention(*own, alibi, backend=backend)
        found[backend] = [result, *torch.autograd.grad(result.sin().sum(), own)]
    for eager, tiled in zip(found[AttentionBackend.EAGER], found[AttentionBackend.TILED], strict=True):
        torch.testing.assert_close(tiled, eager, atol=1e-5, rtol=1e-4)


def test_a_long_sequence_has_as_many_tiles_as_are_worth_their_code_and_three_eighths_of_its_pairs_are_left_out() -> (
    None
):
    assert len(tile_bounds(2048)) == len(tile_bounds(100_001)) == MOST_TILES
    assert 1 - pairs_in_tiles(2048) / 2048**2 == 3 / 8


def test_no_token_sees_the_future() -> None:
    query = torch.randn(1, 2, 6, 4)
    alibi = Alibi(2, form=AlibiForm.DISTANCE, group=AxisGroup.single())
    for backend in (AttentionBackend.EAGER, AttentionBackend.SDPA, AttentionBackend.FLASH, AttentionBackend.TILED):
        before = attention(query, query, query, alibi, backend=backend)
        changed = query.clone()
        changed[:, :, 4:] += 1.0
        after = attention(changed, changed, changed, alibi, backend=backend)
        torch.testing.assert_close(after[:, :, :4], before[:, :, :4])
        assert not torch.allclose(after[:, :, 4:], before[:, :, 4:])


def chosen(
    wanted: AttentionBackend,
    length: int,
    *,
    device_type: str = "cpu",
    dropout: float = 0.0,
    precision: Precision = Precision.BF16,
    compiled: bool = False,
) -> AttentionBackend:
    return choose_kernel(
        wanted, device_type=device_type, length=length, dropout=dropout, precision=precision, compiled=compiled
    )


def test_auto_takes_what_was_measured_faster_and_dropout_needs_eager() -> None:
    auto = AttentionBackend.AUTO
    assert chosen(auto, 512) is AttentionBackend.EAGER
    assert chosen(auto, 513) is AttentionBackend.FLASH
    assert chosen(auto, 2048, compiled=True) is AttentionBackend.TILED
    assert chosen(auto, 2049, compiled=True) is AttentionBackend.FLASH
    assert chosen(auto, 512, compiled=True, precision=Precision.FP32) is AttentionBackend.TILED
    assert chosen(auto, 513, compiled=True, precision=Precision.FP32) is AttentionBackend.FLASH
    assert chosen(auto, 512, compiled=True, dropout=0.1) is AttentionBackend.EAGER
    assert chosen(auto, 512, device_type="cuda", compiled=True) is AttentionBackend.FLASH
    assert chosen(auto, 2048, device_type="cuda", dropout=0.1) is AttentionBackend.EAGER


def test_impossible_backends_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine.attention=flex needs a GPU.* Use eager, sdpa, flash or auto"):
        chosen(AttentionBackend.FLEX, 16)
    with pytest.raises(ConfigError, match=r"engine.attention=tiled is for compiled code on a CPU.*on a GPU"):
        chosen(AttentionBackend.TILED, 16, device_type="cuda", compiled=True)
    with pytest.raises(ConfigError, match=r"engine.attention=sdpa cannot drop .*model.attention_dropout=0.1"):
        chosen(AttentionBackend.SDPA, 16, dropout=0.1)
    alibi = Alibi(1, form=AlibiForm.DISTANCE, group=AxisGroup.single())
    with pytest.raises(ConfigError, match=r"engine.attention=auto is not a kernel"):
        attention(*(torch.zeros(1, 1, 2, 2) for _ in range(3)), alibi, backend=AttentionBackend.AUTO)
