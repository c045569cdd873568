"""Byte pair encoding over whole arrays: the ids of the library's own model."""

import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import models

from megatron_poro.tokenizer.bytes import byte_characters
from megatron_poro.tokenizer.merges import LONGEST_WORD, Merges

CHARACTERS = byte_characters()


def random_model(choices: random.Random, *, missing: str = "") -> dict[str, object]:
    """Merges in any order and of any two tokens, twice the same ones included, as no trainer would learn them."""
    vocabulary = {character: number for number, character in enumerate(CHARACTERS) if character not in missing}
    merges: list[list[str]] = []
    tokens = [letter for letter in "abcd" if letter not in missing]
    for _ in range(choices.randrange(60)):
        left, right = choices.choice(tokens), choices.choice(tokens)
        if len(left + right) <= 12:
            merges.append([left, right])
            tokens.append(left + right)
            vocabulary.setdefault(left + right, len(vocabulary) + 100)
    choices.shuffle(merges)
    return {"type": "BPE", "vocab": vocabulary, "merges": merges}


def of_the_library(model: dict[str, object], words: list[bytes]) -> list[list[int]]:
    definition = {"version": "1.0", "added_tokens": [], "model": model}
    backend = HuggingFaceTokenizer.from_str(json.dumps(definition)).model
    spelt = ["".join(CHARACTERS[byte] for byte in word) for word in words]
    return [[token.id for token in backend.tokenize(word)] for word in spelt]


def ours(model: dict[str, object], words: list[bytes]) -> list[list[int]]:
    ids, counts = Merges(model).encode(words)
    return [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])] if words else []


@pytest.mark.parametrize("seed", range(60))
def test_any_table_of_merges_gives_the_librarys_ids(seed: int) -> None:
    choices = random.Random(seed)
    model = random_model(choices, missing=choices.choice(["", "", "c", "xyz"]))
    words = ["".join(choices.choices("aabbcd", k=choices.randint(1, LONGEST_WORD))).encode() for _ in range(60)]
    words += [b"a" * LONGEST_WORD, b"ccc", "äö".encode(), b"xz", b"a"]
    assert ours(model, words) == of_the_library(model, words)


def test_pair_that_is_listed_twice_has_its_later_rank() -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    model: dict[str, object] = {"vocab": vocabulary, "merges": [["a", "b"], ["b", "c"], ["a", "b"]]}
    assert ours(model, [b"abc"]) == of_the_library({**model, "type": "BPE"}, [b"abc"]) == [[0, 4]]


def test_no_words_have_no_ids() -> None:
    assert ours(random_model(random.Random(0)), []) == []


@pytest.mark.parametrize(
    "other",
    [{"type": "Unigram"}, {"unk_token": "<unk>"}, {"dropout": 0.1}, {"byte_fallback": True}, {"ignore_merges": True}],
)
def test_model_of_another_kind_is_told_apart(other: dict[str, object]) -> None:
    plain = json.loads(models.BPE(vocab={"a": 0}, merges=[]).__getstate__())
    assert Merges.are_plain(plain)
    assert not Merges.are_plain({**plain, **other})
    assert not Merges.are_plain({**plain, "vocab": {"a": 1 << 21}})
