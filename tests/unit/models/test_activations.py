"""GELU by a sigmoid is the tanh form of GELU."""

import pytest
import torch
from torch.nn import functional as F

from megatron_poro.models.activations import gelu_by_sigmoid


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_gelu_by_sigmoid_is_the_tanh_form_forward_and_backward(dtype: torch.dtype, tolerance: float) -> None:
    points = torch.linspace(-12.0, 12.0, 4001).to(dtype).requires_grad_()
    truth = points.detach().double().requires_grad_()
    found, expected = gelu_by_sigmoid(points), F.gelu(truth, approximate="tanh")
    torch.testing.assert_close(found.double(), expected, rtol=tolerance / 2, atol=tolerance)
    (slope,), (true_slope,) = (torch.autograd.grad(y.sum(), x) for y, x in ((found, points), (expected, truth)))
    torch.testing.assert_close(slope.double(), true_slope, rtol=tolerance / 2, atol=tolerance)
