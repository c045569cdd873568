"""Dropout masks are pure functions of seed, sample, layer and place."""

import torch

from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.rng import DropoutClock, derive_seed, dropout


def masks(clock: DropoutClock, *, count: int, place: str = "here", rank: int | None = None) -> list[torch.Tensor]:
    """The masks of one layer's next microbatches, one row a sample."""
    rows = []
    for _ in range(count):
        key = clock.next_key("layer")
        rows.append(dropout(torch.ones(clock.microbatch_samples, 64), 0.5, key, place, rank=rank) > 0)
    return [row for mask in rows for row in mask]


def test_any_split_of_the_global_batch_draws_the_same_masks() -> None:
    whole = DropoutClock(seed=1, microbatch_samples=8)
    whole.start_step(40)
    expected = masks(whole, count=1)
    for data_size, microbatch in ((1, 2), (2, 2), (4, 1), (2, 4)):
        found = {}
        for data_rank in range(data_size):
            clock = DropoutClock(seed=1, data_rank=data_rank, data_size=data_size, microbatch_samples=microbatch)
            clock.start_step(40)
            count = 8 // (data_size * microbatch)
            rows = masks(clock, count=count)
            for i, row in enumerate(rows):
                step, place = divmod(i, microbatch)
                found[(step * data_size + data_rank) * microbatch + place] = row
        assert all(torch.equal(found[i], expected[i]) for i in range(8))


def test_samples_places_layers_and_seeds_differ() -> None:
    clock = DropoutClock(seed=1, microbatch_samples=2)
    clock.start_step(0)
    first, second = masks(clock, count=1)
    assert not torch.equal(first, second)
    clock.start_step(0)
    assert torch.equal(masks(clock, count=1)[0], first), "the same step draws the same masks"
    clock.start_step(0)
    assert not torch.equal(masks(clock, count=1, place="there")[0], first)
    other = DropoutClock(seed=2, microbatch_samples=2)
    other.start_step(0)
    assert not torch.equal(masks(other, count=1)[0], first)


def test_masks_agree_over_the_tensor_group_outside_and_differ_inside_it() -> None:
    outside, inside = [], []
    for tensor_rank in range(2):
        clock = DropoutClock(seed=1, tensor_rank=tensor_rank)
        clock.start_step(0)
        outside.append(masks(clock, count=1)[0])
        clock.start_step(0)
        inside.append(masks(clock, count=1, rank=tensor_rank)[0])
    assert torch.equal(outside[0], outside[1])
    assert not torch.equal(inside[0], inside[1])


def test_positions_that_ranks_share_out_get_their_part_of_the_whole_mask() -> None:
    clock = DropoutClock(seed=1, microbatch_samples=3)
    clock.start_step(0)
    key = clock.next_key("layer")
    whole = dropout(torch.ones(3, 8, 16), 0.5, key, "here")
    parts = [dropout(torch.ones(3, 2, 16), 0.5, key, "here", stream=AxisGroup(rank=rank, size=4)) for rank in range(4)]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(dropout(torch.ones(3, 8, 16), 0.5, key, "here", stream=AxisGroup.single()), whole)


def test_dropout_keeps_the_expectation_and_without_a_key_does_nothing() -> None:
    clock = DropoutClock(seed=3)
    clock.start_step(0)
    dropped = dropout(torch.ones(1, 100_000), 0.3, clock.next_key("layer"), "here")
    assert abs(float(dropped.mean()) - 1.0) < 0.02
    assert abs(float((dropped == 0).float().mean()) - 0.3) < 0.02
    ones = torch.ones(2, 3)
    assert dropout(ones, 0.3, None, "here") is ones
    clock.enabled = False
    assert clock.next_key("layer") is None


def test_a_derived_seed_is_the_same_everywhere() -> None:
    assert derive_seed(42, "initial", "embedding.weight", 0) == 5561560522896734754
