"""Learns a byte-level BPE vocabulary with BLOOM's pipeline and Poro's special tokens.

The original was trained without an initial alphabet, so a byte that its sample never held has no token and is lost in
encoding. Here all 256 bytes have a token unless asked otherwise.

Source: create_bloom_tokenizer.py of TurkuNLP/finngen-tools (the trainer's settings, the order of the special tokens).
"""

from collections.abc import Iterable
from enum import Enum

from tokenizers import AddedToken
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from megatron_poro.config.run import TokenizerKind
from megatron_poro.errors import ConfigError, DataError
from megatron_poro.tokenizer.bytes import byte_characters
from megatron_poro.tokenizer.fast_training import learn_merges
from megatron_poro.tokenizer.pipeline import bloom_pipeline, bloom_settings
from megatron_poro.tokenizer.sentencepiece_training import train_sentencepiece
from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS
from megatron_poro.tokenizer.tokenizer import Tokenizer


class Trainer(str, Enum):
    """Who learns the merges; both learn the same ones."""

    TOKENIZERS = "tokenizers"
    """The trainer of the `tokenizers` library."""

    GIGABPE = "gigabpe"
    """A compiled one, faster by far on a large sample: see docs/data.md. Not installed unless asked for."""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    kind: TokenizerKind,
    byte_alphabet: bool = True,
    trainer: Trainer = Trainer.TOKENIZERS,
    show_progress: bool = False,
) -> Tokenizer:
    """Trains a tokenizer of either kind; the options are those of `train_bpe`.

    Raises:
        ConfigError: if ``vocab_size`` is too small, or an option is of the other kind.
        DataError: if ``texts`` hold too few words for so large a vocabulary.
    """
    if kind is TokenizerKind.BLOOM:
        return train_bpe(texts, vocab_size, byte_alphabet=byte_alphabet, trainer=trainer, show_progress=show_progress)
    if not byte_alphabet or trainer is not Trainer.TOKENIZERS:
        raise ConfigError("no byte alphabet, and the choice of a trainer, are options of kind bloom: leave them out.")
    return train_sentencepiece(texts, vocab_size)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    byte_alphabet: bool = True,
    trainer: Trainer = Trainer.TOKENIZERS,
    show_progress: bool = False,
) -> Tokenizer:
    """Trains on ``texts``; the result has exactly ``vocab_size`` ids, the special tokens first.

    The same texts give the same tokenizer, whatever their order, the trainer and the number of threads.

    Args:
        texts: read once; only the counts of distinct words are kept.
        vocab_size: ids of the tokenizer, special tokens and bytes included.
        byte_alphabet: give every byte a token, so that any text survives. False is the original's way: only bytes that
            occur in ``texts`` have one.
        trainer: who learns the merges; the result is the same.
        show_progress: draw the library's progress bars on standard error.

    Raises:
        ConfigError: if ``vocab_size`` leaves no room for the special tokens and the bytes, or the trainer is missing.
        DataError: if ``texts`` hold too few words for so large a vocabulary.
    """
    alphabet = byte_characters() if byte_alphabet else []
    least = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size={vocab_size} is less than the {len(SPECIAL_TOKENS)} special tokens and {len(alphabet)} bytes: "
            f"ask for at least {least}."
        )
    special_tokens = [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    if trainer is Trainer.GIGABPE:
        backend = bloom_pipeline(learn_merges(texts, vocab_size, alphabet=alphabet, special_tokens=SPECIAL_TOKENS))
        backend.add_special_tokens(special_tokens)
    else:
        backend = bloom_pipeline(BPE())
        plain = BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special_tokens,
            initial_alphabet=alphabet,
            show_progress=show_progress,
        )
        backend.train_from_iterator(texts, plain)
    tokenizer = Tokenizer(backend.to_str(), bloom_settings())
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"the texts give a vocabulary of {tokenizer.vocab_size}, vocab_size={vocab_size} was asked for: "
            "train on more text, or ask for fewer tokens."
        )
    return tokenizer
