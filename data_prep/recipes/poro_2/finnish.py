"""FineWeb2's Finnish: 30 % of Poro 2's mixture, 49,649,704,835 tokens, read once."""

from collections.abc import Sequence

from megatron_poro.data.recipe import Recipe, plain_text


def recipes() -> Sequence[Recipe]:
    """One corpus."""
    return [
        Recipe(
            name="finnish",
            source="finnish",
            origin="https://huggingface.co/datasets/HuggingFaceFW/fineweb-2 (fin_Latn)",
            licence="ODC-BY; Common Crawl terms of use",
            form="Known from its card: parquet in data/fin_Latn/train and data/fin_Latn/test, columns text, id, dump, "
            "url, date, file_path, language, language_score, language_script, minhash_cluster_size, top_langs. That "
            "test serves as validation is this recipe's choice.",
            train=("fineweb-2/**/train/*.parquet", "fineweb-2/train/*.hub.json"),
            validation=("fineweb-2/**/test/*.parquet",),
            extract=plain_text,
            columns=("text",),
        )
    ]
