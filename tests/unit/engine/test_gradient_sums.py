"""Gradients of one process in buckets: every one is added once, none stays, and nothing of the last step is left."""

import pytest
import torch
from torch import Tensor, nn

from megatron_poro.engine.buckets import Bucket
from megatron_poro.engine.gradient_sums import ScatteredSums
from tests.unit.engine.test_buckets import SINGLE, parameters, single_buckets


def sums_of(*parts: nn.Parameter, passes: int) -> tuple[list[Bucket], ScatteredSums]:
    buckets = single_buckets(list(parts), 1)
    return buckets, ScatteredSums(buckets, replicas=SINGLE, passes=lambda _: passes)


def sums(buckets: list[Bucket]) -> dict[str, Tensor]:
    return {p.canonical_name: view.clone() for bucket in buckets for p, view in bucket.with_gradients()}  # type: ignore[attr-defined]


def test_gradients_are_added_up_in_fp32_and_none_is_left() -> None:
    held = parameters((2, 2), dtype=torch.bfloat16)
    buckets, total = sums_of(*held, passes=2)
    for factor in (256.0, 1.0):  # their sum is no number of bf16
        (held[0] * factor).sum().backward()
        assert held[0].grad is None
    total.reduce()
    assert sums(buckets)["layer0.weight"].eq(257.0).all()


def test_the_first_gradient_of_a_step_replaces_the_last_steps_sum() -> None:
    held = parameters((2, 2), (3,))
    buckets, total = sums_of(*held, passes=2)
    for factor in (1.0, 10.0):
        total.start_step()
        for _ in range(2):
            (factor * (held[0].sum() + held[1].sum())).backward()
        total.reduce()
        assert all(gradient.eq(2 * factor).all() for gradient in sums(buckets).values())


def test_a_parameter_without_a_gradient_in_a_step_has_none_of_the_step_before() -> None:
    held = parameters((2, 2), (3,))
    buckets, total = sums_of(*held, passes=2)
    (held[0].sum() + held[1].sum()).backward()
    held[0].sum().backward()
    total.reduce()
    assert sums(buckets)["layer1.weight"].eq(1.0).all(), "one gradient where two were expected"
    total.start_step()
    held[0].sum().backward()
    total.reduce()
    assert sums(buckets)["layer0.weight"].eq(1.0).all()
    assert sums(buckets)["layer1.weight"].eq(0.0).all()


def test_a_gradient_that_comes_after_its_bucket_was_sent_is_no_silent_loss() -> None:
    (held,) = parameters((2, 2))
    sums_of(held, passes=1)
    held.sum().backward()
    with pytest.raises(AssertionError, match="layer0.weight got more than the 1 gradients that were expected"):
        held.sum().backward()
