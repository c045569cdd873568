"""Code through ``torch.compile``: what lies between two matrix products becomes one pass over memory.

All blocks of a model share one piece of code, so it is compiled once however deep the model is: for training, and for
evaluation; the cross entropy is another. What communicates or draws random masks stays outside
(:mod:`megatron_poro.parallel.uncompiled`).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is compiled when it is first called, for the very shapes of its arguments."""
    return torch.compile(function, dynamic=False)
