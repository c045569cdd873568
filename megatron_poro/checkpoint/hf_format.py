"""How each model family is called at Hugging Face; a dictionary, so that adding a family is adding a line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_poro.config.model import BloomConfig
from megatron_poro.errors import CheckpointError
from megatron_poro.models import bloom_names
from megatron_poro.models.bloom_names import SpecialIds, TensorName
from megatron_poro.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class HuggingFaceFormat:
    """The tables of one family.

    Attributes:
        tensors: every tensor of a model under both names, in Hugging Face's order.
        to_config: ``to_config(model, dtype=, special=, tensor_size=)`` is the content of ``config.json``.
        as_read: ``as_read(model, dtype=, special=)`` is what transformers must make of that file.
        from_config: the model that a ``config.json`` describes.
        identity: what a run that goes on from an import must agree with.
    """

    tensors: Callable[[BloomConfig], list[TensorName]]
    to_config: Callable[..., dict[str, Any]]
    as_read: Callable[..., dict[str, Any]]
    from_config: Callable[[Mapping[str, Any]], BloomConfig]
    identity: Callable[[BloomConfig], dict[str, Any]]


FORMATS = {
    "bloom": HuggingFaceFormat(
        tensors=bloom_names.bloom_tensors,
        to_config=bloom_names.bloom_to_hugging_face,
        as_read=bloom_names.bloom_as_read,
        from_config=bloom_names.bloom_from_hugging_face,
        identity=bloom_names.bloom_identity,
    )
}


def format_of(family: str) -> HuggingFaceFormat:
    """The tables of a family, by our name or by Hugging Face's ``model_type``.

    Raises:
        CheckpointError: if there are none.
    """
    if family not in FORMATS:
        raise CheckpointError(f"model family {family!r} has no Hugging Face format here; known: {', '.join(FORMATS)}.")
    return FORMATS[family]


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """The ids that ``config.json`` and ``generation_config.json`` name."""
    return SpecialIds(bos=tokenizer.bos_id, eos=tokenizer.eos_id, pad=tokenizer.pad_id)
