"""A tokenizer that needs no training: the 24 special tokens, then one token per byte.

It is an ordinary `Tokenizer` whose model has no merges, so it saves, loads and exports like any other.
"""

from tokenizers import AddedToken
from tokenizers.models import BPE

from megatron_poro.tokenizer.pipeline import bloom_pipeline, bloom_settings
from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS
from megatron_poro.tokenizer.tokenizer import Tokenizer


def byte_tokenizer() -> Tokenizer:
    """The byte tokenizer: id 24 + b is byte b of the text's UTF-8; 280 ids in all."""
    vocabulary = {token: position for position, token in enumerate(SPECIAL_TOKENS)}
    vocabulary.update({character: len(SPECIAL_TOKENS) + byte for byte, character in enumerate(byte_characters())})
    backend = bloom_pipeline(BPE(vocab=vocabulary, merges=[]))
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return Tokenizer(backend.to_str(), bloom_settings())


def missing_bytes(tokenizer: Tokenizer) -> list[int]:
    """Bytes that a byte-level tokenizer has no token for: text that holds one does not survive encoding."""
    return [byte for byte, character in enumerate(byte_characters()) if tokenizer.token_id(character) is None]


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary, in the order of the bytes.

    Printable Latin-1 stands for itself, the other 68 bytes for the characters from U+0100 on.

    Source: Radford et al. 2019, encoder.py of openai/gpt-2.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(substitutes)) for byte in range(256)]
