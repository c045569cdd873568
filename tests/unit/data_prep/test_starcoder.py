"""The tags of a code document."""

import pytest

from data_prep.recipes.starcoder import OPENING_TAGS, code_document
from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS


def test_the_file_name_is_tagged_on_a_line_of_its_own() -> None:
    assert code_document("x = 1\n", "tools/x.py") == "<filename>tools/x.py\nx = 1\n"


@pytest.mark.parametrize("tag", OPENING_TAGS)
def test_content_that_the_corpus_has_tagged_stays_as_it_is(tag: str) -> None:
    assert code_document(f"{tag}a\nx = 1\n", "x.py") == f"{tag}a\nx = 1\n"


def test_a_tag_further_down_does_not_count() -> None:
    assert code_document("# <filename>\n", "x.py") == "<filename>x.py\n# <filename>\n"


def test_all_tags_are_special_tokens() -> None:
    assert set(OPENING_TAGS) <= set(SPECIAL_TOKENS)
