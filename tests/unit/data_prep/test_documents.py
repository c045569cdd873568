"""Dividing and cutting of sample documents."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.recipes.sample.documents import Document, cut, split, within_budget


def documents(number: int, *, suffix: str = "") -> list[Document]:
    """Twice as many documents as groups."""
    return [Document(f"text {n}{suffix}", f"group {n // 2}") for n in range(number)]


def test_split_keeps_every_document_once_and_in_order() -> None:
    everything = documents(40)
    train, validation = split(everything)
    assert len(validation) == 4
    assert train == [document for document in everything if document not in validation]


def test_split_never_divides_a_group() -> None:
    train, validation = split(documents(40), validation_share=0.3)
    assert {document.group for document in train}.isdisjoint(document.group for document in validation)


def test_sources_with_the_same_groups_are_divided_alike() -> None:
    here, there = split(documents(40)), split(documents(40, suffix=" in other words"))
    assert [document.group for document in here.validation] == [document.group for document in there.validation]


def test_split_does_not_depend_on_the_order_of_the_documents() -> None:
    assert set(split(documents(40)).validation) == set(split(documents(40)[::-1]).validation)


def test_a_small_source_has_a_validation_part_too() -> None:
    assert len(split(documents(6)).validation) == 2


@settings(deadline=None)
@given(st.text("ab\n"), st.integers(1, 20))
def test_cut_pieces_join_to_the_text(text: str, characters: int) -> None:
    assert "\n\n".join(cut(text, separator="\n\n", characters=characters)) == text


def test_cut_pieces_are_as_long_as_they_may_be() -> None:
    assert cut("aa\n\nbb\n\ncc\n\ndddddddddd", separator="\n\n", characters=6) == ["aa\n\nbb", "cc", "dddddddddd"]


@pytest.mark.parametrize(("characters", "kept"), [(0, 0), (5, 0), (6, 1), (17, 2), (18, 3)])
def test_budget_is_not_exceeded(characters: int, kept: int) -> None:
    assert within_budget(documents(3), characters) == documents(3)[:kept]
