"""ALiBi slopes and bias, against the released oracle values and Hugging Face's construction."""

import pytest
import torch

from megatron_poro.config.model import AlibiForm
from megatron_poro.errors import ConfigError
from megatron_poro.models.alibi import Alibi, alibi_slopes
from megatron_poro.parallel.groups import AxisGroup

CPU = torch.device("cpu")


def test_poro_slopes() -> None:
    slopes = alibi_slopes(56)
    assert slopes[[0, 31, 32, 55]].tolist() == pytest.approx([0.8408964, 0.00390625, 0.9170040, 0.0170392], rel=1e-5)
    assert slopes[:4].tolist() == pytest.approx([0.84089642, 0.70710678, 0.59460356, 0.5])
    assert slopes[32:36].tolist() == pytest.approx([0.91700404, 0.77110541, 0.64841978, 0.54525387])
    assert int(slopes.argmax()) == 32, "the list is not sorted"


def test_a_power_of_two_is_one_geometric_series() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-k for k in range(1, 9)]


@pytest.mark.parametrize("heads", [1, 3, 4, 12, 56])
def test_slopes_and_bias_are_those_of_hugging_face(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 9), heads, torch.float32).view(heads, 1, 9)
    torch.testing.assert_close(alibi_slopes(heads).view(-1, 1, 1) * torch.arange(9.0), theirs)


def test_tensor_ranks_take_contiguous_heads() -> None:
    whole = alibi_slopes(56)
    parts = [Alibi(56, form=AlibiForm.DISTANCE, group=AxisGroup(rank, 2)).slopes for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)


def test_both_forms_are_the_same_attention_before_rounding() -> None:
    """Softmax removes a constant per query; only the rounding of the historic form is left."""
    scores = torch.randn(4, 12, 12, generator=torch.Generator().manual_seed(0))
    future = torch.ones(12, 12, dtype=torch.bool).triu(1)
    weights = []
    for form in AlibiForm:
        bias = Alibi(4, form=form, group=AxisGroup.single()).bias(12, CPU)
        weights.append((scores + bias).masked_fill(future, -torch.inf).softmax(-1))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=0)  # 12 positions: exact in bf16


def test_the_historic_form_rounds_far_positions_to_bf16() -> None:
    bias = Alibi(56, form=AlibiForm.HISTORIC_BF16, group=AxisGroup.single()).bias(2048, CPU)
    assert torch.equal(bias, bias.bfloat16().float())
    # head 32 has slope 0.917: near position 2047 neighbouring keys get one and the same bias
    assert bias[32, 0, 2046] == bias[32, 0, 2047]


def test_heads_that_do_not_divide_are_refused_with_the_divisors() -> None:
    with pytest.raises(
        ConfigError, match=r"parallel.tensor=6 does not divide model.num_heads=56. Use one of 1, 2, 4, 7"
    ):
        Alibi(56, form=AlibiForm.DISTANCE, group=AxisGroup(0, 6))
    with pytest.raises(ConfigError, match=r"model.num_heads=0"):
        alibi_slopes(0)
