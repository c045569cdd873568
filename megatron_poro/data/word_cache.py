"""Ids of texts, several times faster than the tokenizers library and identical to it, for BLOOM's kind of tokenizer.

BLOOM's tokenizer cuts a text into words, each of which becomes ids on its own. A language has few words that are used
all the time, so a dictionary in front of the library answers most of them: cutting is one regular expression, looking
up and joining run without a line of Python per word. What the dictionary does not have yet is asked of the library.

Identity rests on three things, each with a test over the whole of Unicode: the cut is the one that Oniguruma makes
(Python's own class of white space holds four control characters more than Unicode's), special tokens are found before
the text is cut, and nothing else of the tokenizer looks beyond a word. A tokenizer that is not exactly of this kind is
served by the library itself.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from megatron_poro.tokenizer.pipeline import BLOOM_SPLIT
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.tokenizer.words import PIECE

_NO_WORD = frozenset("()|.,!?…。，、।۔، \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000").union(
    map(chr, range(0x2000, 0x200B))
)
"""The last character of what is no word; a word's is none of these."""

_NEWLINE = "Ċ"
"""How byte-level vocabularies spell a line end."""

GENERATION = 1 << 18
"""Words remembered before the memory is turned over: what was not used since the last time is forgotten. All in all
about 100 MB a process, whatever the size of the corpus."""

_LONGEST_WORD = 64
"""Characters of the longest word that is remembered: base64 and the like never come twice."""


class Encoder:
    """Texts to the bytes of their ids as a dataset stores them.

    Args:
        tokenizer: what defines the ids.
        stored: type of an id in the dataset.
    """

    def __init__(self, tokenizer: Tokenizer, stored: np.dtype[Any]) -> None:
        self._tokenizer, self.stored = tokenizer, stored
        self._end = np.array([tokenizer.eos_id], dtype=stored).tobytes()
        shape = bloom_shape(tokenizer.definition)
        self._words = None if shape is None else WordCache(tokenizer, shape, stored)

    def encode(self, texts: Sequence[str]) -> tuple[bytes, NDArray[np.int32], int]:
        """Encodes documents, each followed by the end-of-document id; those without a token are left out.

        Returns:
            The ids, the length of each document, and how many were left out.

        Raises:
            DataError: if a text holds half of a surrogate pair.
        """
        if self._words is not None:
            documents = self._words.encode(texts)
        else:
            documents = [np.array(ids, dtype=self.stored).tobytes() for ids in self._tokenizer.encode_batch(texts)]
        kept = [document for document in documents if document]
        sizes = np.array([len(document) // self.stored.itemsize + 1 for document in kept], dtype=np.int32)
        return self._end.join([*kept, b""]), sizes, len(documents) - len(kept)


class WordCache:
    """The bytes of each word's ids, asked for once.

    Args:
        tokenizer: a tokenizer of BLOOM's kind.
        shape: its shape.
        stored: type of an id.
    """

    def __init__(self, tokenizer: Tokenizer, shape: "Shape", stored: np.dtype[Any]) -> None:
        self._tokenizer, self._special, self._stored = tokenizer, shape.special, stored
        self._young: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}
        self._separator = self._id_of_newline()

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Ids of each text."""
        cut = [self._cut(text) for text in texts]
        # looked up before anything is learnt, so that what is new can be asked for all at once
        found = [list(map(self._young.get, words)) for words in cut]
        gaps = [_places_of_none(known) for known in found]
        unknown = {words[place] for words, places in zip(cut, gaps, strict=True) for place in places}
        self._learn(unknown)
        for words, known, places in zip(cut, found, gaps, strict=True):
            for place in places:
                known[place] = self._young[words[place]]
        self._forget(unknown)
        return [b"".join(cast(list[bytes], known)) for known in found]

    def _cut(self, text: str) -> list[str]:
        """Words, what lies between them, and special tokens."""
        if self._special is None or self._special.search(text) is None:
            return PIECE.findall(text)
        words: list[str] = []
        for number, part in enumerate(self._special.split(text)):
            words.extend([part] if number % 2 else PIECE.findall(part))
        return words

    def _learn(self, unknown: set[str]) -> None:
        """Adds the ids of words."""
        remembered = self._old.keys() & unknown
        self._young.update((word, self._old[word]) for word in remembered)
        new = unknown.difference(remembered)
        apart = [word for word in new if word[-1] in _NO_WORD] if self._separator is not None else list(new)
        together = list(new.difference(apart))
        self._young.update(zip(together, self._ids_of_words(together), strict=True))
        for word in apart:
            self._young[word] = np.array(self._tokenizer.encode(word), dtype=self._stored).tobytes()

    def _forget(self, new: Iterable[str]) -> None:
        """Keeps the memory bounded."""
        for word in [word for word in new if len(word) > _LONGEST_WORD]:
            del self._young[word]
        if len(self._young) > GENERATION:
            self._old, self._young = self._young, {}

    def _ids_of_words(self, words: Sequence[str]) -> list[bytes]:
        """Ids of several words, asked for in one text with a line end between them: a third faster than one by one."""
        if not words:
            return []
        ids = np.array(self._tokenizer.encode_batch(["\n".join(words)])[0], dtype=self._stored)
        ends = np.flatnonzero(ids == self._separator)
        assert len(ends) + 1 == len(words), "a line end stands between two words and in none"
        content, itemsize = ids.tobytes(), self._stored.itemsize
        bounds = [-1, *ends.tolist(), len(ids)]
        return [content[(begin + 1) * itemsize : end * itemsize] for begin, end in pairwise(bounds)]

    def _id_of_newline(self) -> int | None:
        """The id that stands for a line end and nothing else; None where the vocabulary lacks it."""
        ids = self._tokenizer.encode("\n")
        return ids[0] if len(ids) == 1 and ids[0] == self._tokenizer.token_id(_NEWLINE) else None


def _places_of_none(items: list[bytes | None]) -> list[int]:
    """Their positions; the search runs outside Python, and there are few."""
    places: list[int] = []
    place = -1
    with suppress(ValueError):
        while True:
            place = items.index(None, place + 1)
            places.append(place)
    return places


class Shape(NamedTuple):
    """What a tokenizer of BLOOM's kind can differ in, apart from its words.

    Attributes:
        special: splits a text at its special tokens, which it also returns; None if it has none.
    """

    special: re.Pattern[str] | None


def bloom_shape(definition: str) -> Shape | None:
    """The shape of a tokenizer given as the text of its ``tokenizer.json``; None if it is not of BLOOM's kind."""
    content = json.loads(definition)
    model = content.get("model") or {}
    tokens = content.get("added_tokens") or []
    if content.get("normalizer") is not None or not _is_bloom_cut(content.get("pre_tokenizer")):
        return None
    if model.get("type") != "BPE" or model.get("dropout"):
        return None
    if any(token.get(flag) for token in tokens for flag in ("single_word", "lstrip", "rstrip")):
        return None
    if any("\n" in token["content"] for token in tokens):  # the separator of ``WordCache``
        return None
    # of several that begin at the same place the library takes the longest; an alternation takes the first
    spelt = sorted((token["content"] for token in tokens if token["content"]), key=len, reverse=True)
    return Shape(re.compile(f"({'|'.join(map(re.escape, spelt))})") if spelt else None)


def _is_bloom_cut(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    steps = (pre_tokenizer or {}).get("pretokenizers") or []
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"]:  # only a Sequence has steps
        return False
    split, byte_level = steps
    return (
        split.get("pattern") == {"Regex": BLOOM_SPLIT}
        and split.get("behavior") == "Isolated"
        and not split.get("invert")
        and not byte_level.get("add_prefix_space")
        and byte_level.get("use_regex") is False
    )
