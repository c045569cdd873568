"""Where BLOOM's split cuts a text."""

import pytest
from tokenizers.models import BPE

from megatron_poro.tokenizer.pipeline import bloom_pipeline


def pieces(text: str) -> list[str]:
    """The stretches of ``text`` that the split keeps together."""
    pre_tokenizer = bloom_pipeline(BPE()).pre_tokenizer
    return [text[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Hei, maailma!", ["Hei", ",", " maailma", "!"], id="punctuation stands alone"),
        pytest.param("vuonna 1917", ["vuonna", " 1917"], id="digits stay together"),
        pytest.param("hyvää yötä, Åbo", ["hyvää", " yötä", ",", " Åbo"], id="Finnish letters are letters"),
        pytest.param("f(x|y)", ["f", "(", "x", "|", "y", ")"], id="parentheses and bar stand alone"),
        pytest.param("(a), b", ["(", "a", "),", " b"], id="adjoining punctuation is one piece"),
        pytest.param("a  b", ["a", " ", " b"], id="the last of several spaces joins the word"),
        pytest.param(
            "if x:\n\n    y\t= 1", ["if", " x:", "\n\n   ", " y", "\t", "=", " 1"], id="indentation is a piece"
        ),
        pytest.param("x-y_z='ä'", ["x-y_z='ä'"], id="other signs belong to the word"),
        pytest.param("niin…ja。、।۔،", ["niin", "…", "ja", "。、।۔،"], id="punctuation of other scripts"),
        pytest.param("don't", ["don't"], id="no English contractions, unlike GPT-2"),
    ],
)
def test_bloom_split(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected
