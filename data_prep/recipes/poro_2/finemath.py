"""FineMath: 10 % of Poro 2's mixture, from the best-rated parts of two collections."""

from collections.abc import Sequence

from megatron_poro.data.recipe import Recipe, plain_text

SOURCE = "finemath"


def recipes() -> Sequence[Recipe]:
    """FineMath-4+ and InfiWebMath-4+, one dataset."""
    return [_part("finemath-4plus"), _part("infiwebmath-4plus")]


def _part(name: str) -> Recipe:
    return Recipe(
        name=f"{SOURCE}/{name}",
        source=SOURCE,
        origin=f"https://huggingface.co/datasets/HuggingFaceTB/finemath ({name})",
        licence="ODC-BY; Common Crawl terms of use",
        form="Known from its card: parquet in a folder of that name, columns text, url, metadata, score, int_score, "
        "token_count, char_count and, of FineMath, where the page was crawled. The corpus has no validation part: "
        "what lies in a folder validation is inferred to be held out.",
        train=(f"finemath/{name}/**/*.parquet", f"finemath/{name}/*.hub.json"),
        validation=(f"finemath/{name}/validation/**/*.parquet",),
        extract=plain_text,
        columns=("text",),
    )
