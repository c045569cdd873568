"""Shares of groups of texts."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.errors import ConfigError, DataError
from megatron_poro.tokenizer.sample import plan_shares, take_evenly


def taken(texts: Sequence[str], wanted: int) -> list[str]:
    return list(take_evenly(texts, available=sum(map(len, texts)), wanted=wanted))


def test_equal_weights_give_what_the_smallest_group_holds() -> None:
    assert plan_shares([500, 300, 900], [1, 1, 1]) == [300, 300, 300]


def test_shares_follow_the_weights_until_a_group_runs_out() -> None:
    assert plan_shares([1000, 300, 900], [2, 1, 1]) == [600, 300, 300]


def test_a_size_is_divided_by_the_weights() -> None:
    assert plan_shares([1000, 300, 900], [2, 1, 1], characters=400) == [200, 100, 100]


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_weights_that_make_no_sense_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="weights"):
        plan_shares([10, 20], weights)


def test_more_than_there_is_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        DataError, match=r"group 2 has 300 characters, its share of 2,000 is 1,000: ask for at most 600"
    ):
        plan_shares([1000, 300], [1, 1], characters=2000)
    with pytest.raises(DataError, match="group 2 of 2 holds no text"):
        plan_shares([1000, 0], [1, 1])


@given(st.lists(st.text(max_size=20), min_size=1), st.data())
def test_a_share_is_met_to_within_half_of_the_longest_text(texts: list[str], data: st.DataObject) -> None:
    available = sum(map(len, texts))
    wanted = data.draw(st.integers(0, available))
    found = taken(texts, wanted)
    assert abs(sum(map(len, found)) - wanted) <= max(map(len, texts)) / 2
    remaining = iter(texts)
    assert all(text in remaining for text in found), "texts are taken in order, each at most once"


@given(st.lists(st.text(min_size=1)))
def test_a_whole_group_is_taken_whole(texts: list[str]) -> None:
    assert taken(texts, sum(map(len, texts))) == texts


def test_a_share_is_spread_evenly() -> None:
    texts = [f"{number:03}" for number in range(100)]
    quarter = [int(text) for text in taken(texts, 75)]
    assert len(quarter) == 25
    assert {after - before for before, after in pairwise(quarter)} == {4}
