"""Ids of texts, many times faster than the tokenizers library and identical to it, for BLOOM's kind of tokenizer.

BLOOM's tokenizer cuts a text into pieces, each of which becomes ids on its own. A language has few words that are used
all the time, so a dictionary in front of the library answers most of them. A chunk of texts is cut as a whole, its
pieces are numbered, and only the distinct ones meet Python: they are looked up, or merged all at once, and the ids of
the chunk are gathered by their numbers.

Identity rests on three things, each with a test over the whole of Unicode: the cut is the one that Oniguruma makes,
special tokens are found before the text is cut, and nothing else of the tokenizer looks beyond a piece. A tokenizer
that is not exactly of this kind is served by the library itself.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.arrow import arrow
from megatron_poro.tokenizer.merges import LONGEST_WORD, Merges
from megatron_poro.tokenizer.pieces import END, SPECIAL, joined, piece_bounds
from megatron_poro.tokenizer.pipeline import BLOOM_SPLIT
from megatron_poro.tokenizer.tokenizer import Tokenizer

GENERATION = 1 << 15
"""Pieces remembered before the memory is turned over: what was not used since the last time is forgotten. All in all
about 8 MB a process beyond what the first chunk takes, whatever the size of the corpus."""


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
            return self._words.encode(texts)
        documents = [np.array(ids, dtype=self.stored).tobytes() for ids in self._tokenizer.encode_batch(texts)]
        kept = [document for document in documents if document]
        sizes = np.array([len(document) // self.stored.itemsize + 1 for document in kept], dtype=np.int32)
        return self._end.join([*kept, b""]), sizes, len(documents) - len(kept)


class WordCache:
    """The bytes of each piece's ids, asked for once.

    Args:
        tokenizer: a tokenizer of BLOOM's kind.
        shape: its shape.
        stored: type of an id.
    """

    def __init__(self, tokenizer: Tokenizer, shape: "Shape", stored: np.dtype[Any]) -> None:
        self._tokenizer, self._shape, self._stored = tokenizer, shape, stored
        tokenizer.forget_words()
        self._marks = {END: self._bytes_of([tokenizer.eos_id]), SPECIAL: b""}
        self._special = {text: self._bytes_of([number]) for text, number in shape.special_ids.items()}
        self._young = dict(self._marks)
        self._old: dict[bytes, bytes] = {}

    def encode(self, texts: Sequence[str]) -> tuple[bytes, NDArray[np.int32], int]:
        """What ``Encoder.encode`` gives."""
        if not texts:
            return b"", np.zeros(0, dtype=np.int32), 0
        data, special = self._joined(texts)
        pieces, numbers = _distinct(data, piece_bounds(data))
        ids = self._ids_of(pieces)
        if special:
            places = {text: len(ids) + number for number, text in enumerate(dict.fromkeys(special))}
            ids += [self._special[text] for text in places]
            numbers = numbers.copy()
            numbers[numbers == pieces.index(SPECIAL)] = [places[text] for text in special]
        return self._gathered(ids, numbers, numbers == pieces.index(END))

    def _joined(self, texts: Sequence[str]) -> tuple[bytes, list[bytes]]:
        """The texts as ``piece_bounds`` wants them, and the special tokens that were taken out, in order."""
        try:
            data = joined(texts)
        except UnicodeEncodeError:
            self._tokenizer.encode_batch(texts)  # says which text and character it is
            raise
        if self._shape.special is None:
            return data, []
        special: list[bytes] = self._shape.special.findall(data)
        return self._shape.special.sub(SPECIAL, data) if special else data, special

    def _ids_of(self, pieces: Sequence[bytes]) -> list[bytes]:
        """Ids of each piece, all different, from memory or worked out."""
        ids = list(map(self._young.get, pieces))
        missing = [place for place, known in enumerate(ids) if known is None]
        learnt = self._learn([pieces[place] for place in missing])
        for place in missing:
            ids[place] = learnt[pieces[place]]
        if len(self._young) > GENERATION:
            self._old, self._young = self._young, dict(self._marks)
        return cast(list[bytes], ids)

    def _learn(self, pieces: Sequence[bytes]) -> dict[bytes, bytes]:
        """Ids of pieces, remembered from now on; but not of long ones: base64 and the like never come twice."""
        learnt = {piece: self._old[piece] for piece in pieces if piece in self._old}
        words = [piece for piece in pieces if len(piece) <= LONGEST_WORD and piece not in learnt]
        learnt.update(zip(words, self._worked_out(words), strict=True))
        self._young.update(learnt)
        for piece in pieces:
            if len(piece) > LONGEST_WORD:
                learnt[piece] = self._bytes_of(self._tokenizer.encode(piece.decode()))
        return learnt

    def _worked_out(self, words: Sequence[bytes]) -> list[bytes]:
        """The ids that merging makes of each word."""
        ids, counts = self._shape.merges.encode(words)
        content, ends = self._bytes_of(ids), np.cumsum(counts) * self._stored.itemsize
        return [content[begin:end] for begin, end in pairwise([0, *ends.tolist()])]

    def _gathered(
        self, ids: Sequence[bytes], numbers: NDArray[np.integer[Any]], is_end: NDArray[np.bool_]
    ) -> tuple[bytes, NDArray[np.int32], int]:
        """The ids of all pieces by their numbers, without the ends of documents that have none."""
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)) // self._stored.itemsize
        begins = np.cumsum(lengths) - lengths
        counts = lengths[numbers]
        sizes = np.diff(np.cumsum(counts)[is_end], prepend=0)
        counts[np.flatnonzero(is_end)[sizes == 1]] = 0
        ends = np.cumsum(counts)
        places = np.repeat(begins[numbers] - (ends - counts), counts)
        places += np.arange(len(places))
        tokens = np.frombuffer(b"".join(ids), dtype=self._stored)[places]
        kept = sizes[sizes > 1]
        return tokens.tobytes(), kept.astype(np.int32), len(sizes) - len(kept)

    def _bytes_of(self, ids: Sequence[int] | NDArray[Any]) -> bytes:
        return np.array(ids, dtype=self._stored).tobytes()


def _distinct(data: bytes, bounds: NDArray[np.int64]) -> tuple[list[bytes], NDArray[np.int32]]:
    """The different pieces, and for each piece the number of the one that it is."""
    library = arrow("pyarrow")
    buffers = [None, library.py_buffer(bounds), library.py_buffer(data)]
    pieces = library.Array.from_buffers(library.large_binary(), len(bounds) - 1, buffers).dictionary_encode()
    offsets, content = pieces.dictionary.buffers()[1:]
    ends = np.frombuffer(offsets, dtype=np.int64, count=len(pieces.dictionary) + 1).tolist()
    blob = content.to_pybytes()
    numbers: NDArray[np.int32] = pieces.indices.to_numpy()
    return [blob[begin:end] for begin, end in pairwise(ends)], numbers


class Shape(NamedTuple):
    """What a tokenizer of BLOOM's kind can differ in, apart from its words.

    Attributes:
        special: finds special tokens in UTF-8; None if there are none.
        special_ids: their ids.
        merges: what makes ids of a word.
    """

    special: re.Pattern[bytes] | None
    special_ids: dict[bytes, int]
    merges: Merges


def bloom_shape(definition: str) -> Shape | None:
    """The shape of a tokenizer given as the text of its ``tokenizer.json``; None if it is not of BLOOM's kind."""
    content = json.loads(definition)
    model = content.get("model") or {}
    tokens = content.get("added_tokens") or []
    if content.get("normalizer") is not None or not _is_bloom_cut(content.get("pre_tokenizer")):
        return None
    if not Merges.are_plain(model):
        return None
    if any(token.get(flag) for token in tokens for flag in ("single_word", "lstrip", "rstrip")):
        return None
    ids = {token["content"].encode(): token["id"] for token in tokens if token["content"]}
    # of several that begin at the same place the library takes the longest; an alternation takes the first
    longest_first = sorted(ids, key=len, reverse=True)
    return Shape(re.compile(b"|".join(map(re.escape, longest_first))) if ids else None, ids, Merges(model))


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
