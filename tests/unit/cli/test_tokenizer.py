"""``poro tokenizer``: what it writes, prints and refuses."""

import json
from pathlib import Path

import pytest
import sentencepiece

from megatron_poro.cli.tokenizer import main
from megatron_poro.tokenizer.bytes import byte_tokenizer
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


def test_a_pattern_stands_for_its_files_in_order(corpus: Path, tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"code_{name}.jsonl", "content", [f"{name * 8} = {name * 8}"] * 20)
    pattern, parts = f"{tmp_path}/code_*.jsonl:content", ["code_a.jsonl:content", "code_b.jsonl:content"]
    assert main(["train", "--input", pattern, "--vocab-size", "285", "--output", str(tmp_path / "x")]) == 0
    files = [str(tmp_path / part) for part in parts]
    assert main(["train", "--input", *files, "--vocab-size", "285", "--output", str(tmp_path / "y")]) == 0
    assert Tokenizer.load(tmp_path / "x").fingerprint == Tokenizer.load(tmp_path / "y").fingerprint


def test_a_pattern_that_fits_no_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "*.jsonl", tmp_path / "made") == 2
    assert "no corpus file fits" in capsys.readouterr().err


# shares


@pytest.fixture
def groups(tmp_path: Path) -> list[str]:
    """Two groups: 1000 characters of x in texts of 10, 300 of y in texts of 10."""
    write(tmp_path / "long.jsonl", "text", ["xxxx xxxxx"] * 100)
    write(tmp_path / "short.jsonl", "content", ["yyyyyyyyyy"] * 30)
    return ["--input", str(tmp_path / "long.jsonl"), "--input", f"{tmp_path / 'short.jsonl'}:content"]


def shares(groups: list[str], output: Path, *options: str) -> int:
    return main(["train", *groups, "--vocab-size", "282", "--output", str(output), *options])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--balance"], ["300 of 1,000 characters (30.0%)", "300 of 300 characters (100.0%)"]),
        (["--weights", "2", "1"], ["600 of 1,000 characters (60.0%)", "300 of 300 characters (100.0%)"]),
        (["--balance", "--characters", "0.2k"], ["100 of 1,000 characters (10.0%)", "100 of 300 characters (33.3%)"]),
    ],
)
def test_every_input_gives_its_share(
    groups: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: list[str]
) -> None:
    assert shares(groups, tmp_path / "made", *options) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in printed[:2]] == said


def test_the_share_decides_what_is_learnt(groups: list[str], tmp_path: Path) -> None:
    """Pairs: 7 in each text of x, 9 in each of y. All texts make xx the most frequent, equal shares yy."""
    assert shares(groups, tmp_path / "all") == 0
    assert shares(groups, tmp_path / "equal", "--balance") == 0
    first = {name: Tokenizer.load(tmp_path / name).token_id("xx") for name in ("all", "equal")}
    assert first["all"] == 280
    assert first["equal"] != 280


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--characters", "5M"], "--characters needs --balance or --weights"),
        (["--balance", "--characters", "many"], "--characters: many is not a count"),
        (["--balance", "--characters", "5M"], "ask for at most 600"),
        (["--weights", "1"], "1 weights for 2 groups"),
        (["--kind", "sentencepiece", "--trainer", "gigabpe"], "are options of kind bloom"),
    ],
)
def test_shares_that_make_no_sense_leave_nothing(
    groups: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert shares(groups, tmp_path / "made", *options) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_shares_of_one_group_are_refused(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(corpus, tmp_path / "made", "--balance") == 2
    assert "give each group an --input of its own" in capsys.readouterr().err


def test_both_trainers_write_the_same_tokenizer(corpus: Path, tmp_path: Path) -> None:
    assert train(corpus, tmp_path / "plain") == 0
    assert train(corpus, tmp_path / "fast", "--trainer", "gigabpe") == 0
    assert (tmp_path / "plain/tokenizer.json").read_bytes() == (tmp_path / "fast/tokenizer.json").read_bytes()


# SentencePiece


def test_a_sentencepiece_model_can_be_trained_and_looked_into(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(corpus, tmp_path / "made", "--kind", "sentencepiece", vocab_size=330) == 0
    assert "330 ids, fingerprint" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "made"), "Kahvi ☃"]) == 0
    shown = capsys.readouterr().out
    assert "characters without a token become bytes" in shown
    assert "NOT" not in shown


def test_a_model_file_can_be_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["kahvi on kahvia"] * 20), model_prefix=str(tmp_path / "m"), model_type="bpe",
        vocab_size=280, byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    command = ["import", str(tmp_path / "m.model"), "--output", str(tmp_path / "made")]
    assert main(command) == 0
    assert "280 ids, fingerprint" in capsys.readouterr().out
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    assert Tokenizer.load(tmp_path / "made").encode("kahvi ☃") == theirs.encode("kahvi ☃")
    assert main(command) == 2
    assert "already holds a tokenizer" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_a_model_that_cannot_be_imported_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.model").write_bytes(b"text")
    assert main(["import", str(tmp_path / "m.model"), "--output", str(tmp_path / "made")]) == 2
    assert "is not a SentencePiece model" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


# fertility


def test_fertility_is_a_row_for_each_input_and_tokenizer(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "code.jsonl"
    write(code, "content", ["x = 1\n", "yö"])
    byte_tokenizer().save(tmp_path / "bytes")
    assert train(corpus, tmp_path / "made") == 0
    capsys.readouterr()
    folders = [str(tmp_path / "bytes"), str(tmp_path / "made")]
    command = ["fertility", *folders, "--input", str(corpus), "--input", f"{code}:content"]
    assert main(command) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[1]) for row in rows[1:]] == [(n, f) for n in (str(corpus), str(code), "all") for f in folders]
    assert rows[3][2:] == ["280", "2", "4", "9", "9", "2.250", "1.0000"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 6
    assert found[2] == {
        "input": str(code), "tokenizer": folders[0], "ids": 280, "documents": 2, "words": 4, "bytes": 9, "tokens": 9,
        "tokens_per_word": 2.25, "tokens_per_byte": 1.0,
    }  # fmt: skip
    assert found[4]["tokens"] == found[0]["tokens"] + found[2]["tokens"]


def test_fertility_of_empty_texts_has_no_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "empty.jsonl", "text", [""])
    byte_tokenizer().save(tmp_path / "bytes")
    assert main(["fertility", str(tmp_path / "bytes"), "--input", str(tmp_path / "empty.jsonl"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["tokens_per_word"], found["tokens_per_byte"]) == (None, None)


# inspect


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
