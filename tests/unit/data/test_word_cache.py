import json
import os
import random
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_poro.data import word_cache
from megatron_poro.data.word_cache import Encoder, bloom_shape
from megatron_poro.errors import DataError
from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.tokenizer.training import train_bpe

STORED = np.dtype("<u2")
CORPUS = [
    "Tämä on suomenkielinen teksti, jossa on sanoja; ja sanoja on monta. (Niin kuin tässä!)",
    "def encode(self, text: str) -> list[int]:\n\t\treturn [1, 2, 3]  # ids | not words\n",
    "The quick brown fox jumps over the lazy dog… and the dog? It sleeps。 完了、です",
]

# what the cut turns on: white space of all kinds, marks, and the controls that only Python calls white space
EDGES = " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000\u200b\ufeff()[]|.,!?…。，、।۔،<>"
PIECES = st.one_of(
    st.sampled_from([*SPECIAL_TOKENS, "</s", "<|user", "  ", "\n\n", " .", "Ċ"]),
    st.text(EDGES, max_size=4),
    st.sampled_from(list(chain.from_iterable(text.split(" ") for text in CORPUS))),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter(CORPUS * 3), vocab_size=400)


def expected(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    documents = [ids for ids in tokenizer.encode_batch(texts) if ids]
    return [token for ids in documents for token in (*ids, tokenizer.eos_id)]


def encoded(encoder: Encoder, texts: list[str]) -> list[int]:
    return np.frombuffer(encoder.encode(texts)[0], STORED).tolist()


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_ids_are_the_librarys_for_any_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    encoder = Encoder(tokenizer, STORED)
    assert encoded(encoder, texts) == expected(tokenizer, texts)
    assert encoded(encoder, texts) == expected(tokenizer, texts), "the second time, from memory"


def test_long_pieces_leave_nothing_behind(tokenizer: Tokenizer) -> None:
    """The library would remember 10,000 of them: more than 50 MB here."""
    encoder, rng = Encoder(Tokenizer(tokenizer.definition, {"eos_token": "</s>"}), STORED), random.Random(0)

    def texts() -> list[str]:
        return [" ".join("".join(rng.choices("abcdefghij", k=200)) for _ in range(50)) for _ in range(20)]

    encoder.encode(texts())
    before = _resident_megabytes()
    for _ in range(8):
        encoder.encode(texts())
    assert _resident_megabytes() - before < 20


def _resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_forgetting_changes_nothing(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "GENERATION", 8)
    encoder = Encoder(tokenizer, STORED)
    texts = [" ".join(text.split(" ")[i:]) for text in CORPUS for i in range(8)] + ["x" * 70 + " on"] * 2
    for text in texts:
        assert encoded(encoder, [text]) == expected(tokenizer, [text])
    assert encoder._words is not None
    assert len(encoder._words._young) <= 8 + len(CORPUS[1])
    assert not any(len(word) > 64 for word in encoder._words._young | encoder._words._old)


def test_documents_are_counted_and_empty_ones_left_out(tokenizer: Tokenizer) -> None:
    _, sizes, empty = Encoder(tokenizer, STORED).encode(["on", "", "on on"])
    assert sizes.tolist() == [len(tokenizer.encode("on")) + 1, len(tokenizer.encode("on on")) + 1]
    assert empty == 1


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="half of a surrogate pair"):
        Encoder(tokenizer, STORED).encode(["a\ud800"])


def changed(tokenizer: Tokenizer, **content: object) -> Tokenizer:
    definition = {**json.loads(tokenizer.definition), **content}
    return Tokenizer(json.dumps(definition), {"eos_token": "</s>"})


def without_line_end(tokenizer: Tokenizer) -> Tokenizer:
    """As the original, whose alphabet missed bytes: a line end has no id."""
    model = json.loads(tokenizer.definition)["model"]
    merges = [merge for merge in model["merges"] if "Ċ" not in "".join(merge)]
    vocabulary = {token: number for token, number in model["vocab"].items() if "Ċ" not in token}
    return changed(tokenizer, model={**model, "vocab": vocabulary, "merges": merges})


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("change", "is_bloom"),
    [
        ({}, True),
        ({"pre_tokenizer": GPT2}, False),
        ({"normalizer": {"type": "NFC"}}, False),
    ],
)
def test_tokenizer_of_another_kind_is_left_to_the_library(
    tokenizer: Tokenizer, change: dict[str, object], is_bloom: bool
) -> None:
    other = changed(tokenizer, **change)
    assert (bloom_shape(other.definition) is not None) is is_bloom
    texts = [*CORPUS, "it's e\u0301 </s> x"]
    assert encoded(Encoder(other, STORED), texts) == expected(other, texts)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_special_token_that_looks_around_itself_is_left_to_the_library(tokenizer: Tokenizer, flag: str) -> None:
    tokens = json.loads(tokenizer.definition)["added_tokens"]
    other = changed(tokenizer, added_tokens=[{**token, flag: True} for token in tokens])
    texts = ["a  </s>  b", "a</s>b"]
    assert bloom_shape(other.definition) is None
    assert encoded(Encoder(other, STORED), texts) == expected(other, texts)


def test_alphabet_without_the_line_end_changes_nothing(tokenizer: Tokenizer) -> None:
    other = without_line_end(tokenizer)
    assert bloom_shape(other.definition) is not None
    assert encoded(Encoder(other, STORED), CORPUS) == expected(other, CORPUS)


def test_real_tokenizer_round_trips_through_a_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert bloom_shape(loaded.definition) is not None
    assert encoded(Encoder(loaded, STORED), CORPUS) == expected(tokenizer, CORPUS)
