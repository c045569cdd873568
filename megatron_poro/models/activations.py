"""Activation functions in a form that a compiler makes fast."""

import math

import torch
from torch import Tensor

_LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def gelu_by_sigmoid(tensor: Tensor) -> Tensor:
    """GELU in its tanh form, computed by a sigmoid in fp32: ``(1 + tanh(u)) / 2`` is ``sigmoid(2 * u)``.

    In code that is compiled for a CPU a sigmoid takes less time than a tanh.

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2 (the tanh form).
    """
    wide = tensor.float()
    return (wide * torch.sigmoid(wide * (_LINEAR + _CUBIC * wide * wide))).to(tensor.dtype)
