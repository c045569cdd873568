"""Text to token ids and back, from a Hugging Face tokenizer folder, with the `tokenizers` library alone.

Notable: nothing is ever added to a text (no beginning or end token: the data room ends a document with ``eos_id``),
and nothing is cut or padded, whatever a folder's own settings say. A special token that a text spells out becomes its
single id. ``save`` writes files that transformers 4.36, 4.57 and 5.x read to the same ids.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HuggingFaceTokenizer

from megatron_poro.errors import DataError
from megatron_poro.tokenizer import files

ROLES = ("bos", "eos", "pad", "unk")
"""Special tokens that have a meaning of their own, as ``<role>_token`` in the settings."""


class Tokenizer:
    """A tokenizer that cannot change: its definition, the four special ids, and its fingerprint.

    Attributes:
        folder: where it was loaded from; None when it was made in memory.
        vocab_size: one more than the highest id, the least number of rows an embedding needs.
        eos_id: ends a document.
        bos_id, pad_id, unk_id: None where the tokenizer has no such token; Poro's has all of them.
    """

    def __init__(self, definition: str, settings: Mapping[str, Any], *, folder: Path | None = None) -> None:
        """Builds from the text of a ``tokenizer.json`` and the content of a ``tokenizer_config.json``.

        Raises:
            DataError: if the definition cannot be read, or names no end-of-document token that it also has.
        """
        self.folder = folder
        self._definition = definition
        self._settings = dict(settings)
        self._backend = _build(definition, self._origin)
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size: int = 1 + max(self._backend.get_vocab().values(), default=-1)
        ids = {role: self._role_id(role) for role in ROLES}
        if ids["eos"] is None:
            raise DataError(
                f"{self._origin} names no eos_token, which ends every document: "
                "set eos_token in its tokenizer_config.json."
            )
        self.eos_id: int = ids["eos"]
        self.bos_id, self.pad_id, self.unk_id = ids["bos"], ids["pad"], ids["unk"]

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Reads ``tokenizer.json`` and the settings beside it.

        Raises:
            DataError: if the folder or ``tokenizer.json`` is missing, or a file in it is damaged.
        """
        folder = Path(folder)
        definition, settings = files.read(folder)
        return cls(definition, settings, folder=folder)

    def save(self, folder: Path | str) -> None:
        """Writes the three files of a tokenizer into ``folder``, which may hold other files.

        Each file appears whole or not at all, ``tokenizer.json`` last: a folder that has it is complete.
        """
        files.write(Path(folder), json.loads(self._definition), self._settings)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any token at its ends.

        Raises:
            DataError: if the text holds half of a surrogate pair, which no encoding of text can carry.
        """
        # not a batch of one: that would start the library's thread pool, after which a fork is no longer clean
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            _refuse_half_surrogates([text])
            raise
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, in order, worked out on all threads of the library's pool.

        Raises:
            DataError: as ``encode``.
        """
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            _refuse_half_surrogates(texts)
            raise
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of the ids; bytes that are not a whole character come out as U+FFFD.

        Args:
            ids: each at least 0 and below ``vocab_size``.
            skip_special: leave special tokens out of the text.

        Raises:
            DataError: if an id is outside the vocabulary (the library itself would drop it silently).
        """
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise DataError(
                    f"token id {token} is outside the vocabulary of {self._origin}, "
                    f"which has {self.vocab_size} ids: the text was made with another tokenizer."
                )
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def forget_words(self) -> None:
        """Stops the library from remembering words: it keeps up to 10,000 of them, tens of megabytes a process.

        For callers that remember what is worth it themselves. The ids stay the same.
        """
        self._backend.model._resize_cache(0)

    def token_id(self, token: str) -> int | None:
        """Id of a token as it is spelt in the vocabulary, or None."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    @property
    def definition(self) -> str:
        """Text of its ``tokenizer.json``."""
        return self._definition

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the definition's content, in hex; white space, key order and the form of merges do not count."""
        content = files.portable_definition(json.loads(self._definition))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Tokenizer({self._origin}, vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]})"

    @property
    def _origin(self) -> str:
        return "this tokenizer" if self.folder is None else f"tokenizer {self.folder}"

    def _role_id(self, role: str) -> int | None:
        token = files.token_text(self._settings.get(f"{role}_token"))
        if token is None:
            return None
        token_id = self.token_id(token)
        if token_id is None:
            raise DataError(
                f"{self._origin} names {token!r} as its {role}_token, but its vocabulary has no such token: "
                "tokenizer.json and tokenizer_config.json are not of the same tokenizer."
            )
        return token_id


def load_backend(folder: Path | str) -> HuggingFaceTokenizer:
    """The library's own object of any tokenizer folder, which need not name an end-of-document token; cuts no text.

    Raises:
        DataError: if the folder or ``tokenizer.json`` is missing, or a file in it is damaged.
    """
    definition, _ = files.read(Path(folder))
    backend = _build(definition, f"tokenizer {folder}")
    backend.no_truncation()
    backend.no_padding()
    return backend


def _build(definition: str, origin: str) -> HuggingFaceTokenizer:
    """The library's own object; it raises bare ``Exception`` for anything it cannot read."""
    try:
        return HuggingFaceTokenizer.from_str(definition)
    except Exception as error:
        raise DataError(
            f"{origin} has a tokenizer.json that cannot be read ({error}): fetch or train it again."
        ) from error


def _refuse_half_surrogates(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        position = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
        if position is not None:
            raise DataError(
                f"text {number} of {len(texts)} holds half of a surrogate pair (U+{ord(text[position]):04X}) at "
                f"character {position}, which is not text: replace it in the corpus, for instance by U+FFFD."
            )
