import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.data.sampler import Sampler
from megatron_poro.errors import TopologyError
from tests.unit.data.megatron_order import dealt_by_loop

sizes = st.integers(1, 6)


@given(microbatch=sizes, data_size=sizes, rounds=sizes, steps=st.integers(0, 5))
def test_step_is_the_next_samples_dealt_by_round_then_rank(
    microbatch: int, data_size: int, rounds: int, steps: int
) -> None:
    batch = microbatch * data_size * rounds
    sampler = Sampler(global_batch_samples=batch, microbatch_samples=microbatch, data_size=data_size)
    dealt = [sampler.microbatches(steps * batch, rank) for rank in range(data_size)]
    flat = [number for round_ in zip(*dealt, strict=True) for numbers in round_ for number in numbers]
    assert flat == list(range(steps * batch, (steps + 1) * batch))
    assert all(len(rank) == sampler.num_microbatches == rounds for rank in dealt)


@given(microbatch=sizes, data_size=sizes, rounds=sizes, data_rank=sizes)
def test_dealing_is_megatrons(microbatch: int, data_size: int, rounds: int, data_rank: int) -> None:
    data_rank %= data_size
    batch = microbatch * data_size * rounds
    sampler = Sampler(global_batch_samples=batch, microbatch_samples=microbatch, data_size=data_size)
    assert sampler.microbatches(7 * batch, data_rank) == dealt_by_loop(
        7 * batch, 8 * batch, microbatch=microbatch, data_size=data_size, data_rank=data_rank
    )


def test_worked_example_of_two_replicas() -> None:
    sampler = Sampler(global_batch_samples=8, microbatch_samples=2, data_size=2)
    assert sampler.microbatches(16, 0) == [[16, 17], [20, 21]]
    assert sampler.microbatches(16, 1) == [[18, 19], [22, 23]]


def test_poro_run_has_16_microbatches() -> None:
    assert Sampler(global_batch_samples=2048, microbatch_samples=1, data_size=128).num_microbatches == 16


def test_batch_that_replicas_cannot_share_is_refused_with_all_numbers() -> None:
    with pytest.raises(
        TopologyError,
        match=r"global_batch_samples=10 is not a positive multiple of engine.microbatch_samples=2 times 3 replicas = 6",
    ):
        Sampler(global_batch_samples=10, microbatch_samples=2, data_size=3)


@pytest.mark.parametrize("changes", [{"global_batch_samples": 0}, {"microbatch_samples": 0}, {"data_size": 0}])
def test_sizes_must_be_positive(changes: dict[str, int]) -> None:
    with pytest.raises(TopologyError):
        Sampler(**{"global_batch_samples": 4, "microbatch_samples": 2, "data_size": 2, **changes})
