"""``poro tokenizer``: what it writes, prints and refuses."""

import json
from pathlib import Path

import pytest

from megatron_poro.cli.tokenizer import main
from megatron_poro.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A file of twenty texts under ``text``."""
    path = tmp_path / "corpus.jsonl"
    write(path, "text", [f"Kahvi on kahvia, ja kuppi numero {n} on kuppi." for n in range(20)])
    return path


def write(path: Path, key: str, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")


def train(corpus: Path, output: Path, *options: str, vocab_size: int = 290) -> int:
    return main(["train", "--input", str(corpus), "--vocab-size", str(vocab_size), "--output", str(output), *options])


def test_train_writes_a_tokenizer_of_the_size_asked_for(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(corpus, tmp_path / "made") == 0
    tokenizer = Tokenizer.load(tmp_path / "made")
    assert tokenizer.vocab_size == 290
    assert f"290 ids, fingerprint {tokenizer.fingerprint[:12]}" in capsys.readouterr().out


def test_every_input_counts_under_its_own_key(corpus: Path, tmp_path: Path) -> None:
    code = tmp_path / "code.jsonl"
    write(code, "content", ["zzzzzzzz = zzzzzzzz"] * 20)
    assert train(corpus, tmp_path / "made", "--input", str(corpus), f"{code}:content") == 0
    tokenizer = Tokenizer.load(tmp_path / "made")
    assert len(tokenizer.encode("zzzzzzzz")) < 8
    assert len(tokenizer.encode("kahvi")) < 5


def test_a_key_for_all_inputs(tmp_path: Path) -> None:
    code = tmp_path / "code.jsonl"
    write(code, "content", ["kissa istuu ja kissa kehrää"] * 20)
    assert train(code, tmp_path / "made", "--key", "content") == 0


def test_a_colon_in_a_file_name_is_part_of_it(tmp_path: Path) -> None:
    odd = tmp_path / "a:b.jsonl"
    write(odd, "text", ["kissa istuu ja kissa kehrää"] * 20)
    assert train(odd, tmp_path / "made") == 0


def test_without_byte_alphabet_the_loss_is_told(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(corpus, tmp_path / "made", "--no-byte-alphabet", vocab_size=60) == 0
    assert "bytes without a token" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "made"), "Kahvi 5 €"]) == 0
    shown = capsys.readouterr().out
    assert "lost bytes   00, 01" in shown
    assert "does NOT give the text back" in shown


def test_an_existing_tokenizer_is_not_replaced_unasked(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(corpus, tmp_path / "made") == 0
    before = Tokenizer.load(tmp_path / "made").fingerprint
    assert train(corpus, tmp_path / "made", vocab_size=285) == 2
    assert "already holds a tokenizer" in capsys.readouterr().err
    assert Tokenizer.load(tmp_path / "made").fingerprint == before
    assert train(corpus, tmp_path / "made", "--overwrite", vocab_size=285) == 0
    assert Tokenizer.load(tmp_path / "made").vocab_size == 285


@pytest.mark.parametrize(
    ("vocab_size", "complaint"), [(100, "vocab_size=100 is less than"), (9000, "vocab_size=9000 was asked for")]
)
def test_a_size_that_cannot_be_met_leaves_nothing(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], vocab_size: int, complaint: str
) -> None:
    assert train(corpus, tmp_path / "made", vocab_size=vocab_size) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_missing_corpus_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "nowhere.jsonl", tmp_path / "made") == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_inspect_prints_numbers_and_tokens(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(corpus, tmp_path / "made")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "made"), "Kahvi on kahvia"]) == 0
    shown = capsys.readouterr().out
    tokenizer = Tokenizer.load(tmp_path / "made")
    assert "bos 1, eos 2, pad 3, unk 0" in shown
    assert "any text survives" in shown
    assert tokenizer.fingerprint in shown
    ids = tokenizer.encode("Kahvi on kahvia")
    assert f"{ids[0]:>8}  {tokenizer.decode(ids[:1])!r}" in shown
    assert f"{len(ids)} tokens, {len(ids) / 3:.2f} per word" in shown


def test_inspect_of_a_missing_folder_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
