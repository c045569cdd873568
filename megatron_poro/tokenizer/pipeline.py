"""How BLOOM and Poro get from text to byte pieces, and the settings that other programs need to do the same.

The split is BLOOM's, not GPT-2's: a stretch of anything but white space, parentheses, the bar and sentence punctuation,
with at most one space before it, is one word. Digits are not split. What lies between two words (punctuation, runs of
white space) is a piece of its own; nothing is dropped and nothing is normalised, so decoding gives the text back.

Source: tokenizer.json of bigscience/bloom; create_bloom_tokenizer.py of TurkuNLP/finngen-tools.
"""

from typing import Any

from tokenizers import Regex, decoders, pre_tokenizers, processors
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.models import Model

from megatron_poro.tokenizer.special_tokens import BEGINNING, END, PADDING, SPECIAL_TOKENS, UNKNOWN

BLOOM_SPLIT = r" ?[^(\s|[.,!?…。，、।۔،])]+"
"""Oniguruma reads the inner bracket as a nested set: it and both parentheses belong to the excluded characters."""


def bloom_pipeline(model: Model) -> HuggingFaceTokenizer:
    """Puts BLOOM's splitting and byte mapping around a model of merges; adds no token at either end of a text."""
    tokenizer = HuggingFaceTokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BLOOM_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False, use_regex=False)
    return tokenizer


def bloom_settings() -> dict[str, Any]:
    """Content of ``tokenizer_config.json``: what transformers needs to know beside ``tokenizer.json``.

    ``BloomTokenizerFast`` is understood by every transformers from 4.x to 5.x, unlike the class name that 5.x writes.
    """
    return {
        "add_prefix_space": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[4:]),
        "bos_token": BEGINNING,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": int(1e30),
        "pad_token": PADDING,
        "padding_side": "left",
        "tokenizer_class": "BloomTokenizerFast",
        "unk_token": UNKNOWN,
    }
