"""Training a vocabulary: what is guaranteed whatever the texts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from megatron_poro.errors import ConfigError, DataError
from megatron_poro.tokenizer.bytes import byte_characters, missing_bytes
from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.tokenizer.training import train_bpe
from tests.house.checkout import ROOT

TEXTS = [
    "Sauna lämpiää parhaiten kiireettä, ja löyly on pehmeää.",
    "The sauna warms best without haste, and the steam is soft.",
    "def saunan_lampo(asteet):\n    return asteet + 1\n",
    "Kahvi oli jäähtynyt, mutta join sen silti loppuun. Kahvi on kahvia.",
]
VOCAB_SIZE = 340


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A tokenizer trained on the texts above."""
    return train_bpe(TEXTS, VOCAB_SIZE)


@settings(deadline=None)
@given(st.text())
def test_any_text_survives_encoding(trained: Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text


def test_special_tokens_have_the_first_ids_in_order(trained: Tokenizer) -> None:
    assert [trained.token_id(token) for token in SPECIAL_TOKENS] == list(range(24))
    assert (trained.unk_id, trained.bos_id, trained.eos_id, trained.pad_id) == (0, 1, 2, 3)


def test_size_is_what_was_asked_for(trained: Tokenizer) -> None:
    assert trained.vocab_size == VOCAB_SIZE


def test_training_merges_frequent_stretches(trained: Tokenizer) -> None:
    assert len(trained.encode("kahvi")) < len("kahvi")


def test_training_twice_gives_the_same_tokenizer(trained: Tokenizer) -> None:
    assert train_bpe(TEXTS, VOCAB_SIZE).fingerprint == trained.fingerprint


def test_other_texts_give_another_tokenizer(trained: Tokenizer) -> None:
    assert train_bpe(TEXTS[:3], VOCAB_SIZE).fingerprint != trained.fingerprint


def test_the_order_of_the_texts_does_not_matter(trained: Tokenizer) -> None:
    assert train_bpe(reversed(TEXTS), VOCAB_SIZE).fingerprint == trained.fingerprint


def test_the_number_of_threads_does_not_matter() -> None:
    """The pool of threads is made once in a process, so each number needs a process of its own."""
    program = (
        "import pathlib; from megatron_poro.tokenizer.training import train_bpe; "
        "texts = [path.read_text('utf-8') for path in sorted(pathlib.Path('docs').glob('*.md'))]; "
        "print(train_bpe(texts * 3, 2500).fingerprint)"
    )
    fingerprints = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in (1, 4)
    }
    assert len(fingerprints) == 1


def test_without_the_byte_alphabet_unseen_bytes_are_lost(trained: Tokenizer) -> None:
    original_way = train_bpe(TEXTS, 100, byte_alphabet=False)
    assert ord("%") in missing_bytes(original_way)
    assert original_way.decode(original_way.encode("100 %")) != "100 %"
    assert missing_bytes(trained) == []


def test_without_the_byte_alphabet_the_ids_are_specials_then_seen_bytes_then_merges() -> None:
    original_way = train_bpe(TEXTS, 100, byte_alphabet=False)
    seen = {byte for text in TEXTS for byte in text.encode("utf-8")}
    assert set(range(256)) - set(missing_bytes(original_way)) == seen
    assert original_way.vocab_size == 100
    assert [original_way.token_id(token) for token in SPECIAL_TOKENS] == list(range(24))
    seen_ids = {original_way.token_id(character) for b, character in enumerate(byte_characters()) if b in seen}
    assert seen_ids == set(range(24, 24 + len(seen)))


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size=279.*at least 280"):
        train_bpe(TEXTS, 279)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"vocabulary of \d+, vocab_size=5000"):
        train_bpe(TEXTS, 5000)


def test_transformers_loads_the_saved_folder_to_the_same_ids(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "<|user|>Käännä englanniksi: Hei! <|assistant|>Hi!</s>", "  x\n\ty (日本語) 😀 \x00", ""]:
        ids = theirs(text)["input_ids"]
        assert ids == trained.encode(text)
        assert theirs.decode(ids) == text
    assert len(theirs) == trained.vocab_size
    assert (theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2, 3)
    assert theirs.padding_side == "left"


def test_saved_folder_has_the_form_that_old_transformers_reads(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    merges = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = json.loads((tmp_path / "special_tokens_map.json").read_text(encoding="utf-8"))
    assert merges
    assert all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges)
    assert settings["tokenizer_class"] == "BloomTokenizerFast"
    assert special["eos_token"] == settings["eos_token"] == "</s>"
    assert special["additional_special_tokens"] == list(SPECIAL_TOKENS[4:])


def test_loading_the_saved_folder_gives_the_same_tokenizer(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == trained.fingerprint
    assert loaded.encode_batch(TEXTS) == trained.encode_batch(TEXTS)
    assert loaded.folder == tmp_path
