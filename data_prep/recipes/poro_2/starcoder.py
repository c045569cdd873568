"""StarCoderData as it is, tags and all.

It is 30 % of Poro 2's mixture. The tokenizer of Llama 3.1 does not have those tags: to it they are text.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from megatron_poro.data.documents import Dropped
from megatron_poro.data.recipe import Recipe, one_document, text_under

KEY = "content"
"""Name of the text in a record."""


def source_file(record: Mapping[str, Any]) -> Iterable[str | Dropped]:
    """The content, with the tags that it may begin with."""
    return one_document(text_under(record, KEY))


def recipes() -> Sequence[Recipe]:
    """One corpus: every programming language, issues, commits and notebooks."""
    return [
        Recipe(
            name="starcoder",
            source="starcoder",
            origin="https://huggingface.co/datasets/bigcode/starcoderdata",
            licence="permissive licences of the repositories; terms of use of The Stack",
            form="Known from its card: 86 languages in folders of their own with train-*.parquet, columns "
            "max_stars_repo_path, max_stars_repo_name, max_stars_count, id, content; issues, commits and notebooks "
            "have other columns and content too. Known from the paper (arXiv 2305.06161): the tags. The corpus has no "
            "validation part: what lies in a folder validation is inferred to be held out.",
            train=("starcoder/**/*.parquet", "starcoder/**/*.hub.json"),
            validation=("starcoder/validation/**/*.parquet",),
            extract=source_file,
            columns=(KEY,),
        )
    ]
