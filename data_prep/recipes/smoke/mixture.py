"""The six sample corpora, whose documents are made already: only their text is read."""

from collections.abc import Sequence
from functools import partial

from megatron_poro.data.documents import TextUnderKey
from megatron_poro.data.recipe import Recipe

KEYS = {
    "slimpajama": "text",
    "finnish": "text",
    "tatoeba_en_fi": "text",
    "tatoeba_fi_en": "text",
    "starcoder": "content",
    "gutenberg": "text",
}
LEARNT = {"slimpajama", "finnish", "starcoder"}
"""English, Finnish and code, as for the tokenizer of Poro."""


def recipes() -> Sequence[Recipe]:
    """One recipe a corpus."""
    recipe = partial(
        Recipe,
        origin="this project: python -m data_prep.sample_corpora",
        licence="see manifest.json beside the files",
        form="Known: JSON lines in SOURCE.train.jsonl and SOURCE.validation.jsonl.",
    )
    return [
        recipe(
            name=source,
            source=source,
            train=(f"{source}.train.jsonl",),
            validation=(f"{source}.validation.jsonl",),
            extract=TextUnderKey(key),
            in_vocabulary=source in LEARNT,
        )
        for source, key in KEYS.items()
    ]
