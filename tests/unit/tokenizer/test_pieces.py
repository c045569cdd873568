"""BLOOM's split on bytes: the pieces of the original pattern."""

from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.models import BPE

from megatron_poro.tokenizer.pieces import END, SPECIAL, joined, piece_bounds, spell_apart
from megatron_poro.tokenizer.pipeline import bloom_pipeline

PRE_TOKENIZER = bloom_pipeline(BPE()).pre_tokenizer
TEXTS = st.text() | st.text("ab \n\t.,()|[]\x1c\x85\xa0\u3000。…éä𐍈")


def of_the_library(text: str) -> list[bytes]:
    return [text[start:end].encode() for _, (start, end) in PRE_TOKENIZER.pre_tokenize_str(text)]


def pieces(data: bytes) -> list[bytes]:
    return [data[begin:end] for begin, end in pairwise(piece_bounds(data).tolist())]


def test_every_character_is_on_the_same_side_of_the_split() -> None:
    """After a letter, and after a space and before a letter: the ways in which a character matters to the cut."""
    planes_with_characters = chain(range(0, 0x40000, 1 << 14), range(0xE0000, 0xF0000, 1 << 14))
    for first in planes_with_characters:
        characters = [chr(code) for code in range(first, first + (1 << 14)) if not 0xD800 <= code < 0xE000]
        text = "".join(f"a{character}b {character}a\n" for character in characters)
        assert pieces(joined([text])) == [*of_the_library(text), END], hex(first)


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_texts_are_split_as_if_each_were_alone(texts: list[str]) -> None:
    expected = [piece for text in texts for piece in (*of_the_library(text), END)]
    assert pieces(joined(texts)) == expected


def test_special_token_stands_alone_and_parts_what_is_around_it() -> None:
    assert pieces(b"a " + SPECIAL + SPECIAL + b" b. " + SPECIAL + END) == [
        *(b"a", b" ", SPECIAL, SPECIAL, b" b", b". ", SPECIAL, END)
    ]


def test_pieces_are_spelt_in_the_characters_of_their_bytes() -> None:
    assert spell_apart(["yö ja\n", " ei"]).split() == ["yÃ¶", "Ġja", "Ċ", "Ġei"]
    with pytest.raises(UnicodeEncodeError):
        spell_apart(["\ud800"])
