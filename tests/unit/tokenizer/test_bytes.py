"""The tokenizer that needs no training."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from megatron_poro.tokenizer.bytes import byte_characters, byte_tokenizer, missing_bytes
from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS
from megatron_poro.tokenizer.tokenizer import Tokenizer

TOKENIZER = byte_tokenizer()

# Every special token holds a "<", so text without it cannot spell one.
WITHOUT_SPECIAL_TOKENS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"))


@settings(deadline=None)
@given(WITHOUT_SPECIAL_TOKENS)
def test_ids_are_the_bytes_after_the_special_tokens(text: str) -> None:
    assert TOKENIZER.encode(text) == [24 + byte for byte in text.encode()]


@settings(deadline=None)
@given(st.text())
def test_any_text_survives_encoding(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_vocabulary_is_special_tokens_and_bytes() -> None:
    assert TOKENIZER.vocab_size == 280
    assert [TOKENIZER.token_id(token) for token in SPECIAL_TOKENS] == list(range(24))
    assert missing_bytes(TOKENIZER) == []


def test_byte_characters_are_distinct_and_printable() -> None:
    characters = byte_characters()
    assert len(set(characters)) == 256
    assert all(character.isprintable() and not character.isspace() for character in characters)
    assert characters[ord(" ")] == "Ġ"


def test_it_saves_and_loads_like_any_other(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == TOKENIZER.fingerprint
    assert AutoTokenizer.from_pretrained(tmp_path)("Hyvää yötä")["input_ids"] == TOKENIZER.encode("Hyvää yötä")
