"""Parameters dealt out to buckets: in which order, with whom, and what of them is whose share."""

import pytest
import torch
from torch import nn

from megatron_poro.engine.buckets import Bucket, make_buckets
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
