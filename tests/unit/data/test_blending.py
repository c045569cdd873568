from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_poro.data.blending import STRETCH, Blend, Place, choose, normalised, samples_to_request
from megatron_poro.data.index_cache import IndexCache
from megatron_poro.errors import ConfigError
from tests.unit.data.megatron_order import blend_by_loop

PORO_WEIGHTS = [0.5415810341, 0.1304808053, 0.004023063515, 0.004016818638, 0.3153543717, 0.004543906834]

weights_lists = st.lists(st.floats(0.001, 1.0) | st.sampled_from([0.1, 0.25, 0.5]), min_size=1, max_size=8)


def blend(folder: Path, weights: list[float], num_samples: int) -> Blend:
    return Blend(weights, num_samples=num_samples, cache=IndexCache(folder / "cache"))


@settings(max_examples=30, deadline=None)
@given(weights=weights_lists, num_samples=st.integers(1, 600))
def test_choices_are_megatrons(weights: list[float], num_samples: int) -> None:
    shares = normalised(weights)
    assert choose(shares, num_samples).sources.tolist() == blend_by_loop(shares.tolist(), num_samples)[0]


@pytest.mark.parametrize(
    "weights", [PORO_WEIGHTS, [1.0, 1.0], [1.0, 1.0, 1.0], [0.7, 0.2, 0.1], [0.999, 0.001], list(range(1, 20))]
)
@pytest.mark.parametrize("lead", [0, 512])
def test_choices_are_megatrons_over_many_stretches(
    weights: list[float], lead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a lead most guesses of where a stretch begins are wrong; the last group of stretches is a part."""
    monkeypatch.setattr("megatron_poro.data.blending._LEAD", lead)
    monkeypatch.setattr("megatron_poro.data.blending._STRETCHES_AT_ONCE", 4)
    num_samples = 10 * STRETCH + 17
    shares = normalised(weights)
    sources, _ = blend_by_loop(shares.tolist(), num_samples)
    choices = choose(shares, num_samples)
    np.testing.assert_array_equal(choices.sources, sources)
    for stretch, taken in enumerate(choices.taken):
        np.testing.assert_array_equal(taken, np.bincount(sources[: stretch * STRETCH], minlength=len(weights)))


def test_poro_mixture_begins_as_worked_out_by_hand() -> None:
    """English is furthest behind at the start, then code, then Finnish, and so on: no decision is close to a tie."""
    assert choose(normalised(PORO_WEIGHTS), 12).sources.tolist() == [0, 4, 1, 0, 4, 0, 0, 4, 0, 1, 0, 4]


def test_poro_mixture_follows_its_weights() -> None:
    choices = choose(normalised(PORO_WEIGHTS), 500_000)
    counts = np.bincount(choices.sources, minlength=6)
    np.testing.assert_allclose(counts, 500_000 * normalised(PORO_WEIGHTS), atol=1.0)


def furthest(weights: list[float], num_samples: int) -> tuple[float, float]:
    """How many samples any source is behind, and ahead of, its share at most, over all prefixes."""
    shares = normalised(weights)
    sources = choose(shares, num_samples).sources
    taken = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    behind = shares * np.arange(1, num_samples + 1)[:, None] - taken
    return float(behind.max()), float(-behind.min())


@settings(max_examples=60, deadline=None)
@given(weights=weights_lists | st.lists(st.sampled_from([0.001, 0.004, 0.02, 0.1, 0.97]), min_size=2, max_size=12))
def test_every_prefix_is_within_the_bounds_that_the_data_page_proves(weights: list[float]) -> None:
    """Less than one ahead; behind by less than 1 + 1/2 + ... + 1/(sources - 1)."""
    behind, ahead = furthest(weights, 3000)
    rounding = 1e-9
    assert ahead < 1 + rounding
    assert behind < sum(1 / k for k in range(1, len(weights))) + rounding


def test_two_sources_are_never_more_than_one_sample_behind_and_three_may_be() -> None:
    assert furthest([0.999, 0.001], 5000)[0] < 1.0
    assert 1.4 < furthest([0.9776, 0.0224, 0.001], 3000)[0] < 1.5


def test_ties_go_to_the_source_named_first() -> None:
    assert choose(normalised([1, 1, 1]), 6).sources.tolist() == blend_by_loop([1 / 3] * 3, 6)[0]
    assert choose(normalised([1, 1]), 4).sources.tolist() == [0, 1, 0, 1]


def test_place_counts_within_the_source(tmp_path: Path) -> None:
    num_samples = 2 * STRETCH + 100
    mixed = blend(tmp_path, PORO_WEIGHTS, num_samples)
    sources, samples = blend_by_loop(normalised(PORO_WEIGHTS).tolist(), num_samples)
    for number in [0, 1, 57, STRETCH - 1, STRETCH, STRETCH + 1, 2 * STRETCH, num_samples - 1]:
        assert mixed.place(number) == Place(sources[number], samples[number])


def test_consumed_counts_every_prefix(tmp_path: Path) -> None:
    num_samples = 2 * STRETCH
    mixed = blend(tmp_path, [0.7, 0.2, 0.1], num_samples)
    sources, _ = blend_by_loop(normalised([0.7, 0.2, 0.1]).tolist(), num_samples)
    for samples in [0, 1, 57, STRETCH - 1, STRETCH, STRETCH + 1, num_samples]:
        assert mixed.consumed(samples).tolist() == np.bincount(sources[:samples], minlength=3).tolist()


def test_numbers_outside_the_blend_are_index_errors(tmp_path: Path) -> None:
    mixed = blend(tmp_path, [1.0], 10)
    for number in (-1, 10):
        with pytest.raises(IndexError, match=f"sample {number} of a mixture of 10"):
            mixed.place(number)
    with pytest.raises(IndexError, match="11 samples of a mixture of 10"):
        mixed.consumed(11)


def test_weights_need_not_sum_to_one(tmp_path: Path) -> None:
    small, large = blend(tmp_path, [0.1, 0.3], 50), blend(tmp_path, [10.0, 30.0], 50)
    assert [small.place(i) for i in range(50)] == [large.place(i) for i in range(50)]


def test_choices_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [blend(tmp_path, PORO_WEIGHTS, 50).place(i) for i in range(50)]
    monkeypatch.delattr("megatron_poro.data.blending.choose")
    assert [blend(tmp_path, PORO_WEIGHTS, 50).place(i) for i in range(50)] == first


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=f"weight {weight} of source 1 must be a positive number"):
        normalised([0.5, weight])


@pytest.mark.parametrize("count", [0, 256])
def test_number_of_sources_is_bounded(count: int) -> None:
    with pytest.raises(ConfigError, match=f"1 to 255 sources, this one has {count}"):
        normalised([1.0] * count)


def test_requests_of_the_real_run() -> None:
    """488 281 250 samples: each source's share and half a per cent, rounded up."""
    requests = samples_to_request(PORO_WEIGHTS, 488_281_250)
    assert requests == [265_766_084, 64_029_888, 1_974_209, 1_971_144, 154_751_535, 2_229_799]


def test_lone_source_is_asked_for_exactly_the_samples_of_the_run() -> None:
    assert samples_to_request([0.3], 1000) == [1000]


@settings(max_examples=100, deadline=None)
@given(weights=weights_lists, num_samples=st.integers(1, 1000))
def test_no_source_is_asked_for_less_than_the_blend_takes(weights: list[float], num_samples: int) -> None:
    sources, _ = blend_by_loop(normalised(weights).tolist(), num_samples)
    counts = np.bincount(sources, minlength=len(weights))
    assert (counts <= samples_to_request(weights, num_samples)).all()
