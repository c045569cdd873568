"""Trains a SentencePiece model (BPE with byte fallback) and hands it out as a tokenizer of the usual form.

The same promises as for the byte-level one: the special tokens have ids 0 to 23, nothing is put before a text, nothing
is normalised, and any text survives, except that U+2581 comes back as a space. A character that is too rare for a piece
of its own becomes its bytes.
"""

from collections.abc import Iterable

from megatron_poro.errors import ConfigError, DataError
from megatron_poro.tokenizer.sentencepiece_import import from_model_content
from megatron_poro.tokenizer.sentencepiece_library import train_model
from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS
from megatron_poro.tokenizer.tokenizer import Tokenizer

CHARACTER_COVERAGE = 0.9995
"""Share of the characters of the texts that get a piece; the rest, rarest first, are left to the bytes."""

_LONGEST_SENTENCE_BYTES = 1 << 30


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains on ``texts``; the result has exactly ``vocab_size`` ids: special tokens, 256 bytes, then pieces.

    The same texts in the same order give the same tokenizer. SentencePiece keeps all texts in memory while it trains.

    Raises:
        ConfigError: if ``vocab_size`` leaves no room for the special tokens and the bytes.
        DataError: if ``texts`` hold too few words for so large a vocabulary, or more characters than it has room for.
    """
    least = len(SPECIAL_TOKENS) + 256 + 1
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size={vocab_size} is less than the {len(SPECIAL_TOKENS)} special tokens, 256 bytes and one piece: "
            f"ask for at least {least}."
        )
    content = train_model(
        texts,
        vocab_size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=CHARACTER_COVERAGE,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        max_sentence_length=_LONGEST_SENTENCE_BYTES,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        unk_piece=SPECIAL_TOKENS[0],
        bos_piece=SPECIAL_TOKENS[1],
        eos_piece=SPECIAL_TOKENS[2],
        pad_piece=SPECIAL_TOKENS[3],
        control_symbols=list(SPECIAL_TOKENS[4:]),
        num_threads=1,
    )
    tokenizer = from_model_content(content, "the trained SentencePiece model")
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"the texts give a vocabulary of {tokenizer.vocab_size}, vocab_size={vocab_size} was asked for: "
            "train on more text, or ask for fewer tokens."
        )
    return tokenizer
