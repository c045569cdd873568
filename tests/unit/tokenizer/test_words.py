"""BLOOM's split in Python: the pieces of the original pattern."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.models import BPE

from megatron_poro.tokenizer.pipeline import bloom_pipeline
from megatron_poro.tokenizer.words import byte_level, split_words

PRE_TOKENIZER = bloom_pipeline(BPE()).pre_tokenizer


def pieces(text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in PRE_TOKENIZER.pre_tokenize_str(text)]


def test_every_character_is_on_the_same_side_of_the_split() -> None:
    for first in range(0, sys.maxunicode + 1, 1 << 14):
        characters = (chr(code) for code in range(first, first + (1 << 14)) if not 0xD800 <= code < 0xE000)
        text = "".join(f"a{character}b" for character in characters)
        assert split_words(text) == pieces(text), hex(first)


@settings(deadline=None)
@given(st.text() | st.text("ab \n\t.,()|[]\x1c\u3000"))
def test_any_text_is_split_as_by_the_original_pattern(text: str) -> None:
    assert split_words(text) == pieces(text)
    assert "".join(split_words(text)) == text


def test_words_are_spelt_in_the_characters_of_their_bytes() -> None:
    assert [byte_level(word) for word in ("yö", " ja", "\n")] == ["yÃ¶", "Ġja", "Ċ"]
    with pytest.raises(UnicodeEncodeError):
        byte_level("\ud800")
