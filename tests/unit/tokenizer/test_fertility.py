"""Tokens per word and per byte."""

import math
from pathlib import Path

import pytest

from megatron_poro.errors import DataError
from megatron_poro.tokenizer.bytes import byte_tokenizer
from megatron_poro.tokenizer.fertility import Fertility, measure
from megatron_poro.tokenizer.tokenizer import load_backend
from megatron_poro.tokenizer.training import train_bpe

TEXTS = ["kahvi on kahvia"] * 700 + ["yö"]


def test_the_byte_tokenizer_needs_a_token_for_each_byte(tmp_path: Path) -> None:
    byte_tokenizer().save(tmp_path)
    (found,) = measure([load_backend(tmp_path)], iter(TEXTS))
    assert found == Fertility(documents=701, words=2101, bytes=700 * 15 + 3, tokens=700 * 15 + 3)
    assert (found.per_word, found.per_byte) == ((700 * 15 + 3) / 2101, 1.0)


def test_several_tokenizers_are_measured_on_the_same_texts(tmp_path: Path) -> None:
    byte_tokenizer().save(tmp_path / "bytes")
    train_bpe(TEXTS, 290).save(tmp_path / "bpe")
    plain, trained = measure([load_backend(tmp_path / name) for name in ("bytes", "bpe")], iter(TEXTS))
    assert (plain.documents, plain.words, plain.bytes) == (trained.documents, trained.words, trained.bytes)
    assert trained.per_word < plain.per_word / 2


def test_counts_add_up_and_nothing_has_no_ratio() -> None:
    assert Fertility(1, 2, 3, 4) + Fertility(10, 20, 30, 40) == Fertility(11, 22, 33, 44)
    assert math.isnan(Fertility().per_word)
    assert math.isnan(Fertility().per_byte)


def test_a_folder_without_an_end_token_and_with_limits_can_be_measured(tmp_path: Path) -> None:
    byte_tokenizer().save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").unlink()
    backend = load_backend(tmp_path)
    backend.enable_truncation(2)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert measure([load_backend(tmp_path)], ["kahvi"])[0].tokens == 5


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_backend(tmp_path / "nowhere")
