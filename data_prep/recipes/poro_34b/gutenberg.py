"""Project Gutenberg, as the books part of Dolma v1."""

from collections.abc import Sequence

from megatron_poro.data.recipe import Recipe, plain_text


def recipes() -> Sequence[Recipe]:
    """One corpus."""
    return [
        Recipe(
            name="gutenberg",
            source="gutenberg",
            origin="https://huggingface.co/datasets/allenai/dolma (v1, gutenberg-books)",
            licence="ODC-BY; the books are in the public domain in the USA",
            form="Known from the repository and its loader: JSON lines called books-0000.json.gz to books-0002.json.gz "
            "with keys id, text, source, added, created. The corpus has no validation part: what lies in a folder "
            "validation is inferred to be held out.",
            train=("gutenberg/*.json.gz", "gutenberg/*.jsonl*", "gutenberg/*.hub.json"),
            validation=("gutenberg/validation/*.json.gz", "gutenberg/validation/*.jsonl*"),
            extract=plain_text,
            in_vocabulary=False,  # the tokenizer's sample was English, Finnish and code in equal parts
        )
    ]
