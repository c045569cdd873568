"""BLOOM's split of many texts at once, on the bytes of their UTF-8: the pieces of `pipeline.bloom_pipeline`.

All steps are over whole arrays. Two bytes that UTF-8 never uses mark what is no text: ``END`` closes a text and
``SPECIAL`` stands where a special token was; each of them is a piece of its own.
"""

from collections.abc import Iterable
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from megatron_poro.tokenizer.bytes import byte_characters

END = b"\xff"
SPECIAL = b"\xfe"

# What the pattern `` ?[^(\s|[.,!?…。，、।۔،])]+`` keeps out of a word; a plain space may begin one.
_WHITE_SPACE = "\t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_BETWEEN = [character.encode() for character in "()|.,!?…。，、।۔،" + _WHITE_SPACE]
_WIDE = sorted(character for character in _BETWEEN if len(character) > 1)

_WORD, _MARK, _GAP, _SPACE, _LEAD = range(5)
_KINDS = np.zeros(256, dtype=np.uint8)
_KINDS[[character[0] for character in _BETWEEN]] = [_LEAD if character in _WIDE else _GAP for character in _BETWEEN]
_KINDS[ord(" ")] = _SPACE
_KINDS[[END[0], SPECIAL[0]]] = _MARK
_KIND_OF_BYTE = _KINDS.tobytes()

_WIDE_CODES = np.array([int.from_bytes(character.ljust(3, b"\0"), "big") for character in _WIDE], dtype=np.int64)
_THREE_BYTES = 0xE0  # the first byte of two is below it

# the byte of END spells as a space: byte-level vocabularies have no white space
_SPELLING = np.array([ord(character) for character in (*byte_characters()[:255], " ")], dtype="<u4")


def joined(texts: Iterable[str]) -> bytes:
    """Texts as ``piece_bounds`` wants them.

    Raises:
        UnicodeEncodeError: if a text holds half of a surrogate pair.
    """
    return b"".join(chain.from_iterable((text.encode(), END) for text in texts))


def piece_bounds(data: bytes) -> NDArray[np.int64]:
    """Where the pieces of ``data`` begin, and at last where it ends.

    Args:
        data: texts in UTF-8, each followed by ``END``, with ``SPECIAL`` where there is a special token.

    Returns:
        ``[pieces + 1]``; piece ``i`` is ``data[bounds[i]:bounds[i + 1]]``.
    """
    kind = np.frombuffer(bytearray(data.translate(_KIND_OF_BYTE)), dtype=np.uint8)
    _resolve_leads(data, kind)
    space = kind == _SPACE
    kind[space] = _GAP
    begins = np.ones(len(kind) + 1, dtype=bool)
    np.not_equal(kind[1:], kind[:-1], out=begins[1:-1])
    begins[:-1] |= kind == _MARK
    # a word takes the space before it
    spaced = np.flatnonzero(begins[1:-1] & (kind[1:] == _WORD) & space[:-1])
    begins[spaced + 1] = False
    begins[spaced] = True
    return np.flatnonzero(begins)


def spell_apart(texts: Iterable[str]) -> str:
    """The pieces of texts as a byte-level vocabulary spells them, with a space between two.

    Raises:
        UnicodeEncodeError: if a text holds half of a surrogate pair.
    """
    data = joined(texts)
    spelt = _SPELLING[np.frombuffer(data, dtype=np.uint8)]
    return np.insert(spelt, piece_bounds(data)[1:-1], ord(" ")).tobytes().decode("utf-32-le")


def _resolve_leads(data: bytes, kind: NDArray[np.uint8]) -> None:
    """Tells the first bytes of wide spaces and marks from those of letters, in place."""
    leads = np.flatnonzero(kind == _LEAD)
    if not len(leads):
        return
    kind[leads] = _WORD
    content = np.frombuffer(data + b"\0\0", dtype=np.uint8)
    first, second, third = (content[leads + place].astype(np.int64) for place in range(3))
    codes = first << 16 | second << 8 | np.where(first < _THREE_BYTES, 0, third)
    found = _WIDE_CODES[np.minimum(np.searchsorted(_WIDE_CODES, codes), len(_WIDE_CODES) - 1)] == codes
    wide, has_third = leads[found], first[found] >= _THREE_BYTES
    kind[wide] = kind[wide + 1] = _GAP
    kind[wide[has_third] + 2] = _GAP
