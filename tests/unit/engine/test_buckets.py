"""Gradients of one process in buckets: every one is added once, none stays, and nothing of the last step is left."""

import pytest
import torch
from torch import Tensor, nn

from megatron_poro.engine.buckets import Bucket, make_buckets
from megatron_poro.engine.gradient_sums import ScatteredSums
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.shards import Initial, ShardSpec, mark_partial, new_parameter, set_name

SINGLE = AxisGroup.single()


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Named ones, counting up."""
    made = []
    for index, shape in enumerate(shapes):
        parameter = new_parameter(ShardSpec(shape), Initial())
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float32).view(shape).to(dtype)
        set_name(parameter, f"layer{index}.weight")
        made.append(parameter)
    return made


def dealt(buckets: list[Bucket]) -> list[list[str]]:
    return [[parameter.canonical_name for parameter in bucket.parameters] for bucket in buckets]  # type: ignore[attr-defined]


def single_buckets(held: list[nn.Parameter], numbers: int) -> list[Bucket]:
    return make_buckets(held, replicas=SINGLE, completed_over=lambda _: SINGLE, numbers=numbers)


def sums_of(*parts: nn.Parameter, passes: int) -> tuple[list[Bucket], ScatteredSums]:
    buckets = single_buckets(list(parts), 1)
    return buckets, ScatteredSums(buckets, replicas=SINGLE, passes=lambda _: passes)


def sums(buckets: list[Bucket]) -> dict[str, Tensor]:
    return {p.canonical_name: view.clone() for bucket in buckets for p, view in bucket.with_gradients()}  # type: ignore[attr-defined]


def test_buckets_come_in_the_order_in_which_a_backward_pass_completes_them() -> None:
    held = parameters((4, 2), (2,), (3, 2), (2, 2), (2,), (5, 2))
    assert dealt(single_buckets(held, 10)) == [
        ["layer5.weight"],
        ["layer2.weight", "layer3.weight"],  # closed by the one that brought it to ten numbers
        ["layer1.weight", "layer4.weight"],  # not decayed
        ["layer0.weight"],
    ]


def test_what_is_summed_over_other_groups_has_buckets_of_its_own() -> None:
    held = parameters((4, 2), (2,), (2,), (4, 2))
    mark_partial(held[2])
    tie = AxisGroup(size=2)

    def completed_over(parameter: nn.Parameter) -> AxisGroup:
        return tie if parameter is held[0] or parameter is held[2] else SINGLE

    buckets = make_buckets(held, replicas=SINGLE, completed_over=completed_over, numbers=1000)
    assert dealt(buckets) == [["layer3.weight"], ["layer2.weight"], ["layer1.weight"], ["layer0.weight"]]
    assert [bucket.completed_over.size for bucket in buckets] == [1, 2, 1, 2]


@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 7])
def test_every_element_lies_in_one_replicas_share(replicas: int) -> None:
    seen: dict[str, list[int]] = {}
    for rank in range(replicas):
        held = parameters((3, 2), (4, 1))
        bucket = Bucket(held, replicas=AxisGroup(rank, replicas), completed_over=SINGLE)
        assert len(bucket.weights) % replicas == 0
        for piece in bucket.pieces():
            length = piece.inside.stop - piece.inside.start
            values = bucket.weights[bucket.share][piece.inside]
            assert values.tolist() == list(range(piece.start, piece.start + length)), "a parameter counts up"
            seen.setdefault(piece.parameter.canonical_name, []).extend(values.tolist())  # type: ignore[attr-defined]
    assert seen == {"layer0.weight": list(range(6)), "layer1.weight": list(range(4))}


def test_parameters_keep_their_values_and_are_views_of_the_flat_tensor() -> None:
    held = parameters((3, 2), (4, 1))
    (bucket,) = single_buckets(held, 1000)
    assert [p.flatten().tolist() for p in held] == [list(range(6)), list(range(4))]
    bucket.weights.zero_()
    assert not any(parameter.any() for parameter in held)


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
