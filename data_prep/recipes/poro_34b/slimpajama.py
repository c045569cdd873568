"""SlimPajama without its books, which come from a collection whose rights are not cleared."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from megatron_poro.data.documents import Dropped
from megatron_poro.data.recipe import Recipe, one_document, text_under

BOOKS = "RedPajamaBook"
"""Name of the part that is left out; the others are RedPajama's CommonCrawl, C4, Github, ArXiv, Wikipedia and
StackExchange. They are told apart by record: every file of the corpus holds all of them, shuffled."""


def without_books(record: Mapping[str, Any]) -> Iterable[str | Dropped]:
    """The text, unless it is a book."""
    if record["meta"]["redpajama_set_name"] == BOOKS:
        return [Dropped("book")]
    return one_document(text_under(record))


def recipes() -> Sequence[Recipe]:
    """One corpus."""
    return [
        Recipe(
            name="slimpajama",
            source="slimpajama",
            origin="https://huggingface.co/datasets/cerebras/SlimPajama-627B",
            licence="each part its own: Common Crawl terms, ODC-BY (C4), MIT/BSD/Apache-2.0 (GitHub), CC BY-SA "
            "(Wikipedia, StackExchange), arXiv terms",
            form="Known from its card: 59,166 files .jsonl.zst in train/chunk1 to chunk10, and in validation and test; "
            "895 GB; keys text and meta.redpajama_set_name. Known from programs that map the names: the spelling of "
            "RedPajamaBook. That these are the books Poro left out is inferred from the paper (arXiv 2404.01856), "
            "which excludes Books3.",
            train=("slimpajama/train/**/*.jsonl.zst", "slimpajama/train/**/*.hub.json"),
            validation=("slimpajama/validation/**/*.jsonl.zst",),
            extract=without_books,
        )
    ]
