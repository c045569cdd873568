"""Reads a SentencePiece ``.model`` file: its pieces, and the settings that decide how a text becomes pieces.

The file is a protocol buffer. Its few fields of interest are read straight from the wire format, since the library
shows neither the kind of a piece nor the normalisation, and its generated classes need a matching protobuf runtime.

Source: sentencepiece_model.proto of google/sentencepiece; the wire format is documented at protobuf.dev.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from megatron_poro.errors import DataError


class PieceKind(IntEnum):
    """What a piece is; the numbers are the file's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelKind(IntEnum):
    """How a model finds the pieces of a text; the numbers are the file's."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True)
class Piece:
    """A piece of the vocabulary; its id is its place in `SentencePieceModel.pieces`."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True)
class SentencePieceModel:
    """What a ``.model`` file says.

    Attributes:
        pieces: in the order of their ids.
        kind: only BPE merges pieces by score.
        byte_fallback: a character without a piece becomes its bytes.
        normalises: characters are replaced by a table before anything else (NFKC and the like).
        dummy_prefix: a space is put before the text.
        trims_spaces: spaces at both ends are dropped, and of several in a row one is kept.
        escapes_spaces: spaces are written as U+2581 inside pieces.
        space_is_suffix: a space belongs to the word before it.
    """

    pieces: tuple[Piece, ...]
    kind: ModelKind
    byte_fallback: bool
    normalises: bool
    dummy_prefix: bool
    trims_spaces: bool
    escapes_spaces: bool
    space_is_suffix: bool


def parse_model(content: bytes, origin: str) -> SentencePieceModel:
    """The content of a ``.model`` file; ``origin`` names it in errors. Absent fields have the defaults of the format.

    Raises:
        DataError: if ``content`` is something else.
    """
    try:
        model = _parse(content)
        if not model.pieces:
            raise ValueError("it has no pieces")
    except (ValueError, IndexError, struct.error) as error:
        raise DataError(
            f"{origin} is not a SentencePiece model ({error}): give the .model file, not .vocab."
        ) from error
    return model


def _parse(content: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(content):
        if field == 1:
            pieces.append(_piece(_bytes(value)))
        elif field == 2:
            trainer = dict(_fields(_bytes(value)))
        elif field == 3:
            normalizer = dict(_fields(_bytes(value)))
    return SentencePieceModel(
        pieces=tuple(pieces),
        kind=ModelKind(_number(trainer.get(3, ModelKind.UNIGRAM))),
        byte_fallback=bool(trainer.get(35, 0)),
        normalises=bool(normalizer.get(2, b"")),
        dummy_prefix=bool(normalizer.get(3, 1)),
        trims_spaces=bool(normalizer.get(4, 1)),
        escapes_spaces=bool(normalizer.get(5, 1)),
        space_is_suffix=bool(trainer.get(24, 0)),
    )


def _piece(content: bytes) -> Piece:
    fields = dict(_fields(content))
    score = struct.unpack("<f", _bytes(fields.get(2, bytes(4))))[0]
    kind = PieceKind(_number(fields.get(3, PieceKind.NORMAL)))
    return Piece(_bytes(fields.get(1, b"")).decode("utf-8"), score, kind)


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a field holds bytes where a number is expected")
    return value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field is a number where bytes are expected")
    return value


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message: a varint as int, anything else as its bytes."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        field, wire = key >> 3, key & 7
        if wire == 0:
            number, position = _varint(content, position)
            yield field, number
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"unknown wire type {wire} at byte {position}")
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            length, position = _varint(content, position)
        if position + length > len(content):
            raise ValueError(f"it ends inside a field that begins at byte {position}")
        yield field, content[position : position + length]
        position += length


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """A variable-length integer and the position behind it."""
    number = shift = 0
    while True:
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, position
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {position}")
