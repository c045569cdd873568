"""Byte pair encoding of thousands of words at a time, over whole arrays: what the library's model makes of each word.

A word begins as its bytes. In each round every word that still can takes one step: the pair of the lowest rank, of
equal ones the first, becomes one symbol. That is the library's order, so its ids come out for any table of merges.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_poro.tokenizer.bytes import byte_characters

LONGEST_WORD = 64
"""Bytes of the longest word that can be encoded."""

_ID_BITS = 21
_OFFSET_BITS = 6
_LAST = np.int32(2**31 - 1)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the highest bits of the product are the slot
_RANK_MASK = np.uint64(2**_ID_BITS - 1)
_EMPTY = np.uint64(2**64 - 1)
_OF_OTHER_KINDS = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")


class Merges:
    """The merges of a byte-level model, by the ids of their two halves.

    Args:
        model: the ``model`` of a ``tokenizer.json``, for which ``are_plain`` holds.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        vocabulary: dict[str, int] = model["vocab"]
        halves = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        pairs = np.array([(vocabulary[left], vocabulary[right]) for left, right in halves], dtype=np.int64)
        self._merged = np.array([vocabulary[left + right] for left, right in halves], dtype=np.int32)
        self._never = len(halves)
        self._byte_ids = np.array([vocabulary.get(character, -1) for character in byte_characters()], dtype=np.int32)
        self._shift = np.uint64(64 - max(4, (4 * len(halves)).bit_length()))
        self._table = self._hashed(_keys(*pairs.reshape(-1, 2).T))

    @staticmethod
    def are_plain(model: Mapping[str, Any]) -> bool:
        """Whether a model has nothing but a vocabulary and merges, and no more of them than fit here."""
        if model.get("type") != "BPE" or any(model.get(key) for key in (*_OF_OTHER_KINDS, "ignore_merges")):
            return False
        largest: int = max(model["vocab"].values(), default=0)
        return largest < 1 << _ID_BITS and len(model["merges"]) < (1 << _ID_BITS) - 1

    def encode(self, words: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of words of at most ``LONGEST_WORD`` bytes, one after the other, and how many each has.

        A byte without a token has no id.
        """
        if not words:
            return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
        data = np.frombuffer(b"".join(words), dtype=np.uint8)
        sizes = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        ends = np.cumsum(sizes)
        offsets = np.arange(len(data)) - np.repeat(ends - sizes, sizes)
        out = self._byte_ids[data]  # -1 where there is no symbol
        place = np.flatnonzero(out >= 0)
        self._merge(out, place, offsets[place].astype(np.int32))
        symbols = np.concatenate([[0], np.cumsum(out >= 0)])
        return out[out >= 0], np.diff(symbols[ends], prepend=0)

    def _merge(self, out: NDArray[np.int32], place: NDArray[np.int64], offset: NDArray[np.int32]) -> None:
        """Merges until no pair is left.

        A pair stands where its first symbol does, as rank and offset in one number: the lowest in a word is the next.

        Args:
            out: symbols by place, changed in place.
            place: where in ``out`` the symbols are.
            offset: how far in its word each is.
        """
        pair = np.full(len(place), _LAST)
        inner = np.flatnonzero(offset[1:] > offset[:-1])
        pair[inner] = self._ranked(out[place[inner]], out[place[inner + 1]], offset[inner])
        while len(pair):
            ends = np.flatnonzero(pair == _LAST)
            sizes = np.diff(ends, prepend=-1)
            lowest = np.minimum.reduceat(pair, ends - sizes + 1)
            active = lowest < self._never << _OFFSET_BITS
            lowest[~active] = -1
            # one symbol for the chosen pair of each word
            chosen = np.flatnonzero(pair == np.repeat(lowest, sizes))
            lowest = lowest[active]
            out[place[chosen]] = self._merged[lowest >> _OFFSET_BITS]
            out[place[chosen + 1]] = -1
            at_end = pair[chosen + 1] == _LAST
            # without the second halves, and the words that are done
            kept = np.repeat(active, sizes)
            kept[chosen + 1] = False
            done_before = np.cumsum(np.where(active, 0, sizes))[active]
            place, pair = place[kept], pair[kept]
            chosen -= np.arange(len(chosen)) + done_before
            # the pairs that the new symbols are in
            pair[chosen[at_end]] = _LAST
            first = np.concatenate([chosen[~at_end], chosen[(lowest & (2**_OFFSET_BITS - 1)) > 0] - 1])
            first = first[first >= 0]
            first = first[pair[first] != _LAST]
            offsets = pair[first] & np.int32(2**_OFFSET_BITS - 1)
            pair[first] = self._ranked(out[place[first]], out[place[first + 1]], offsets)

    def _ranked(
        self, left: NDArray[np.int32], right: NDArray[np.int32], offset: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """The rank of each pair, with its offset in the lowest bits."""
        keys = _keys(left, right)
        slots = (keys * _SPREAD >> self._shift).astype(np.int64)
        found = self._table[slots]
        others = np.flatnonzero((found >> np.uint64(_ID_BITS) != keys) & (found != _EMPTY))
        while len(others):
            slots[others] = (slots[others] + 1) % len(self._table)
            again = found[others] = self._table[slots[others]]
            others = others[(again >> np.uint64(_ID_BITS) != keys[others]) & (again != _EMPTY)]
        ranks = np.minimum(found & _RANK_MASK, np.uint64(self._never)).astype(np.int32)
        pairs: NDArray[np.int32] = ranks << _OFFSET_BITS | offset
        return pairs

    def _hashed(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """A table with each key in the first free slot from its own on, its rank in the lowest bits."""
        size = 1 << (64 - int(self._shift))
        table = np.full(size, _EMPTY)
        entries = keys << np.uint64(_ID_BITS) | np.arange(len(keys), dtype=np.uint64)
        slots = (keys * _SPREAD >> self._shift).astype(np.int64)
        waiting = np.arange(len(keys))[::-1]  # of a pair that is listed twice the library takes the last
        while len(waiting):
            free = waiting[table[slots[waiting]] == _EMPTY]
            chosen = free[np.unique(slots[free], return_index=True)[1]]
            table[slots[chosen]] = entries[chosen]
            waiting = waiting[table[slots[waiting]] >> np.uint64(_ID_BITS) != keys[waiting]]
            slots[waiting] = (slots[waiting] + 1) % size
        return table


def _keys(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.uint64]:
    keys: NDArray[np.uint64] = left.astype(np.uint64) << np.uint64(_ID_BITS) | right.astype(np.uint64)
    return keys
