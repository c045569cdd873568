import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_poro.cli.data import main
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.tokenizer.bytes import byte_tokenizer

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def command_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command sets for its process is put back: logging, and the environment its workers inherit."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    package = logging.getLogger("megatron_poro")
    for name, value in (("handlers", package.handlers), ("propagate", package.propagate), ("level", package.level)):
        monkeypatch.setattr(package, name, value)


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    byte_tokenizer().save(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def write_corpus(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def tokenize(tmp_path: Path, tokenizer: str, name: str, texts: list[str], *options: str) -> int:
    corpus = write_corpus(tmp_path / f"{name}.jsonl", texts)
    output = str(tmp_path / "data" / name)
    return main(["tokenize", "--input", corpus, "--output", output, "--tokenizer", tokenizer, *options])


def test_texts_become_a_dataset_that_decodes_to_them(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tokenize(tmp_path, tokenizer, "a", ["Hyvää yötä", "", "toinen"], "--workers", "1") == 0
    assert "2 documents, 22 tokens, 1 empty documents left out" in capsys.readouterr().out
    dataset = IndexedDataset(tmp_path / "data" / "a")
    assert byte_tokenizer().decode(dataset.document(0).tolist()) == "Hyvää yötä</s>"


def test_progress_is_logged_now_and_then(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tokenize(tmp_path, tokenizer, "quick", ["a", "b"], "--workers", "1") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("megatron_poro.cli.data.REPORT_SECONDS", 0.0)
    assert tokenize(tmp_path, tokenizer, "slow", ["a", "b"], "--workers", "1") == 0
    assert "2 documents, 4 tokens, " in capsys.readouterr().err


def test_several_workers_give_the_same_files(tmp_path: Path, tokenizer: str) -> None:
    texts = [f"document {i}" for i in range(50)]
    assert tokenize(tmp_path, tokenizer, "one", texts, "--workers", "1") == 0
    assert tokenize(tmp_path, tokenizer, "two", texts, "--workers", "2") == 0
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"  # else every worker would use every core
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"data/one{suffix}").read_bytes() == (tmp_path / f"data/two{suffix}").read_bytes()


def test_merged_datasets_hold_all_documents(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        tokenize(tmp_path, tokenizer, name, [name], "--workers", "1")
    folder = tmp_path / "data"
    assert main(["merge", "--input", f"{folder}/a", f"{folder}/b", "--output", f"{folder}/m"]) == 0
    assert "m: 2 documents, 4 tokens from 2 datasets" in capsys.readouterr().out
    assert [IndexedDataset(folder / "m").document(i).tolist() for i in range(2)] == [[121, 2], [122, 2]]


def test_inspect_shows_numbers_and_text(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    tokenize(tmp_path, tokenizer, "a", ["Hyvää", "toinen", "kolmas"], "--workers", "1")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "data" / "a"), "--tokenizer", tokenizer, "--documents", "2"]) == 0
    shown = capsys.readouterr().out
    assert "documents        3\ntokens           22\n" in shown
    assert "token type       uint16" in shown
    assert "largest id       219 in 22 tokens looked at" in shown
    assert byte_tokenizer().fingerprint in shown
    assert str(tmp_path / "a.jsonl") in shown
    assert "document 0: 8 tokens, ends with the end-of-document token\nHyvää</s>" in shown
    assert "toinen" in shown
    assert "kolmas" not in shown


def test_inspect_without_tokenizer_shows_ids(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenize(tmp_path, tokenizer, "a", ["a"], "--workers", "1")
    assert main(["inspect", str(tmp_path / "data" / "a")]) == 0
    assert "document 0: 2 tokens\nids [121, 2]" in capsys.readouterr().out


def test_inspect_with_another_tokenizer_is_refused(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenize(tmp_path, tokenizer, "a", ["a"], "--workers", "1")
    definition = json.loads(Path(tokenizer, "tokenizer.json").read_text())
    definition["model"]["vocab"]["new"] = 280
    Path(tokenizer, "tokenizer.json").write_text(json.dumps(definition))
    assert main(["inspect", str(tmp_path / "data" / "a"), "--tokenizer", tokenizer]) == 2
    assert f"was made with tokenizer {byte_tokenizer().fingerprint}" in capsys.readouterr().err


def test_existing_output_needs_overwrite(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize(tmp_path, tokenizer, "a", ["old"], "--workers", "1") == 0
    assert tokenize(tmp_path, tokenizer, "a", ["new one"], "--workers", "1") == 2
    assert "a.idx exists. Choose another output prefix, or add --overwrite" in capsys.readouterr().err
    assert tokenize(tmp_path, tokenizer, "a", ["new one"], "--workers", "1", "--overwrite") == 0
    assert IndexedDataset(tmp_path / "data" / "a").num_tokens == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "nowhere.idx does not exist"),
        (["merge", "--input", "nowhere", "--output", "m"], "nowhere.idx does not exist"),
        (["tokenize", "--input", "a.jsonl", "--output", "m", "--tokenizer", "nowhere"], "nowhere does not exist"),
        (
            ["tokenize", "--input", "a.jsonl", "--output", "m", "--tokenizer", "t", "--workers", "0"],
            "--workers 0 must be at least 1",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("poro data: ")
    assert message in shown
    assert len(shown.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("door", ["tokenize_corpus", "merge_shards", "inspect_data"])
def test_doors_lead_to_the_command_without_torch(door: str) -> None:
    run = f"import runpy; runpy.run_module('data_prep.{door}', run_name='__main__')"
    code = f"import sys; sys.modules['torch'] = None; sys.argv[1:] = ['--help']; {run}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: poro data {door.split('_')[0]}")
