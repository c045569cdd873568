"""The compiled trainer learns what the plain one learns."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from megatron_poro.errors import ConfigError, DataError
from megatron_poro.tokenizer import fast_training
from megatron_poro.tokenizer.bytes import byte_characters
from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS
from megatron_poro.tokenizer.training import Trainer, train_bpe
from tests.house.checkout import ROOT

TEXTS = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))]
TEXTS += [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("data_prep/recipes/sample/finnish/*"))]


@pytest.mark.parametrize("byte_alphabet", [True, False])
@pytest.mark.parametrize("vocab_size", [400, 2000, 5000])
def test_both_trainers_make_the_same_tokenizer(vocab_size: int, byte_alphabet: bool) -> None:
    fast, plain = (
        train_bpe(TEXTS, vocab_size, byte_alphabet=byte_alphabet, trainer=trainer)
        for trainer in (Trainer.GIGABPE, Trainer.TOKENIZERS)
    )
    assert fast.fingerprint == plain.fingerprint


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(), min_size=1), st.integers(280, 290))
def test_both_trainers_agree_on_any_text(texts: list[str], vocab_size: int) -> None:
    made = []
    for trainer in (Trainer.GIGABPE, Trainer.TOKENIZERS):
        try:
            made.append(train_bpe(texts, vocab_size, trainer=trainer).fingerprint)
        except DataError as error:
            made.append(str(error))
    assert made[0] == made[1]


def test_the_number_of_threads_does_not_matter() -> None:
    options = {"alphabet": byte_characters(), "special_tokens": SPECIAL_TOKENS}
    learnt = [fast_training.learn_merges(TEXTS * 20, 2500, threads=threads, **options) for threads in (1, 2, 5)]
    assert len({Tokenizer(model).to_str() for model in learnt}) == 1


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(DataError, match="half of a surrogate pair"):
        train_bpe(["kissa", "hei\ud83d"], 290, trainer=Trainer.GIGABPE)


def test_no_words_are_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    train_bpe(TEXTS[:1], 300, trainer=Trainer.GIGABPE)
    with pytest.raises(DataError, match="half of a surrogate pair"):
        train_bpe(["\ud83d"], 300, trainer=Trainer.GIGABPE)
    assert list(tmp_path.iterdir()) == []


def test_a_release_that_nobody_compared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_training, "VERSION", "0.0.1")
    with pytest.raises(ConfigError, match=r"release 0\.1\.0 is installed, 0\.0\.1 is known .*--trainer tokenizers"):
        train_bpe(TEXTS[:1], 300, trainer=Trainer.GIGABPE)


def test_a_trainer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise fast_training.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(fast_training.importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"not installed. Install it by `pip install gigabpe==0\.1\.0`"):
        train_bpe(TEXTS[:1], 300, trainer=Trainer.GIGABPE)
