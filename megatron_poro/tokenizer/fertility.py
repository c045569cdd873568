"""How many tokens a tokenizer needs for a text: per word, and per byte, which also compares languages without spaces.

Words are what white space divides.

Source: Rust et al. 2021, arXiv:2012.15613 (fertility).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from tokenizers import Tokenizer as HuggingFaceTokenizer

_BATCH = 256


@dataclass(frozen=True)
class Fertility:
    """Counts over some texts, without any token at their ends."""

    documents: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0

    @property
    def per_word(self) -> float:
        """Tokens per word; less is better. NaN without words."""
        return self.tokens / self.words if self.words else float("nan")

    @property
    def per_byte(self) -> float:
        """Tokens per byte of UTF-8; less is better. NaN without text."""
        return self.tokens / self.bytes if self.bytes else float("nan")

    def __add__(self, other: "Fertility") -> "Fertility":
        return Fertility(
            self.documents + other.documents,
            self.words + other.words,
            self.bytes + other.bytes,
            self.tokens + other.tokens,
        )


def measure(backends: Iterable[HuggingFaceTokenizer], texts: Iterable[str]) -> list[Fertility]:
    """Fertility of each tokenizer on the same texts, which are read once and not kept."""
    backends = list(backends)
    found = [Fertility() for _ in backends]
    remaining = iter(texts)
    while batch := list(islice(remaining, _BATCH)):
        words = sum(len(text.split()) for text in batch)
        size = sum(len(text.encode("utf-8")) for text in batch)
        for number, backend in enumerate(backends):
            encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
            tokens = sum(len(encoding) for encoding in encodings)
            found[number] += Fertility(len(batch), words, size, tokens)
    return found
