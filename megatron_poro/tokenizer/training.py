"""Learns a byte-level BPE vocabulary with BLOOM's pipeline and Poro's special tokens.

The original was trained without an initial alphabet, so a byte that its sample never held has no token and is lost in
encoding. Here all 256 bytes have a token unless asked otherwise.

Source: create_bloom_tokenizer.py of TurkuNLP/finngen-tools (the trainer's settings, the order of the special tokens).
"""

from collections.abc import Iterable

from tokenizers import AddedToken
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from megatron_poro.errors import ConfigError, DataError
from megatron_poro.tokenizer.bytes import byte_characters
from megatron_poro.tokenizer.pipeline import bloom_pipeline, bloom_settings
from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS
from megatron_poro.tokenizer.tokenizer import Tokenizer


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, byte_alphabet: bool = True, show_progress: bool = False
) -> Tokenizer:
    """Trains on ``texts``; the result has exactly ``vocab_size`` ids, the special tokens first.

    The same texts in the same order give the same tokenizer.

    Args:
        texts: read once, in order; only the counts of distinct words are kept.
        vocab_size: ids of the tokenizer, special tokens and bytes included.
        byte_alphabet: give every byte a token, so that any text survives. False is the original's way: only bytes that
            occur in ``texts`` have one.
        show_progress: draw the library's progress bars on standard error.

    Raises:
        ConfigError: if ``vocab_size`` leaves no room for the special tokens and the bytes.
        DataError: if ``texts`` hold too few words for so large a vocabulary.
    """
    alphabet = byte_characters() if byte_alphabet else []
    least = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size={vocab_size} is less than the {len(SPECIAL_TOKENS)} special tokens and {len(alphabet)} bytes: "
            f"ask for at least {least}."
        )
    backend = bloom_pipeline(BPE())
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=alphabet,
        show_progress=show_progress,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(backend.to_str(), bloom_settings())
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"the texts give a vocabulary of {tokenizer.vocab_size}, vocab_size={vocab_size} was asked for: "
            "train on more text, or ask for fewer tokens."
        )
    return tokenizer
