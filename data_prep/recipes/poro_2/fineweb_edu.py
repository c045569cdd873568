"""FineWeb-Edu: 30 % of Poro 2's mixture."""

from collections.abc import Sequence

from megatron_poro.data.recipe import Recipe, plain_text


def recipes() -> Sequence[Recipe]:
    """One corpus; it is far larger than its share, so any part of it will do."""
    return [
        Recipe(
            name="fineweb_edu",
            source="fineweb_edu",
            origin="https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu",
            licence="ODC-BY; Common Crawl terms of use",
            form="Known from its card: parquet in data/CC-MAIN-*/ and sample/*/, columns text, id, dump, url, "
            "file_path, language, language_score, token_count, score, int_score. Which part Poro 2 read is not "
            "published. The corpus has no validation part: what lies in a folder validation is inferred to be held "
            "out.",
            train=("fineweb-edu/**/*.parquet", "fineweb-edu/*.hub.json"),
            validation=("fineweb-edu/validation/**/*.parquet",),
            extract=plain_text,
            columns=("text",),
        )
    ]
