"""The door to the sentencepiece library: its trainer, and its own encoder, which imported models are compared with."""

import io
from collections.abc import Iterable
from typing import Any

import sentencepiece

from megatron_poro.errors import DataError

Processor = sentencepiece.SentencePieceProcessor
"""A model as SentencePiece runs it."""

_QUIET = 2


def load_processor(content: bytes) -> Processor:
    """A processor of the content of a ``.model`` file."""
    return Processor(model_proto=content)


def train_model(texts: Iterable[str], vocab_size: int, **options: Any) -> bytes:
    """Trains with SentencePiece's own options; returns the content of the ``.model`` file.

    Raises:
        DataError: if SentencePiece refuses the texts or the size.
    """
    content = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text for text in texts if text),
            model_writer=content,
            vocab_size=vocab_size,
            minloglevel=_QUIET,
            **options,
        )
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"SentencePiece cannot make vocab_size={vocab_size} of these texts ({error}): "
            "train on more text, or ask for another size."
        ) from error
    return content.getvalue()
