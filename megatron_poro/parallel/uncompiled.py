"""What ``torch.compile`` has to leave alone: collectives, whose time is measured, and drawn masks."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """The function, called as it is from compiled code too, which ends before it and begins again behind it."""
    return cast(Callable[P, T], torch.compiler.disable(function))  # type: ignore[no-untyped-call]
