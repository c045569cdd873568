import io
import json
import logging
import os
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from megatron_poro.cli.data import main
from megatron_poro.cli.data_tokenize import Reporter
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.ledger import TokenizingProgress
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
    monkeypatch.setattr("megatron_poro.cli.data_tokenize.REPORT_SECONDS", 0.0)
    assert tokenize(tmp_path, tokenizer, "slow", ["a", "b"], "--workers", "1") == 0
    shown = capsys.readouterr().err
    assert "100.0% of the corpus, " in shown
    assert "2 documents, 4 tokens, " in shown


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


def test_shards_are_made_and_joined(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"document {i}" for i in range(50)]
    assert tokenize(tmp_path, tokenizer, "a", texts, "--workers", "1") == 0
    whole = [(tmp_path / f"data/a{suffix}").read_bytes() for suffix in (".bin", ".idx", ".manifest.json")]
    for shard in ("0/2", "1/2"):
        assert tokenize(tmp_path, tokenizer, "a", texts, "--workers", "1", "--shard", shard) == 0
    assert (tmp_path / "data/a.shard-00001-of-00002.idx").exists()
    assert main(["merge", "--shards", "--output", str(tmp_path / "data/a"), "--overwrite"]) == 0
    assert "a: 50 documents, 630 tokens from 2 datasets" not in capsys.readouterr().err
    assert whole == [(tmp_path / f"data/a{suffix}").read_bytes() for suffix in (".bin", ".idx", ".manifest.json")]


def test_malformed_lines_are_named_and_counted_when_skipped(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "a.jsonl"
    corpus.write_text('{"text": "a"}\n{"text": \n{"text": "b"}\n')
    command = ["tokenize", "--input", str(corpus), "--output", str(tmp_path / "a"), "--tokenizer", tokenizer]
    assert main([*command, "--workers", "1"]) == 2
    assert f"{corpus} line 2 is not valid JSON" in capsys.readouterr().err
    assert main([*command, "--workers", "1", "--malformed", "skip"]) == 0
    shown = capsys.readouterr()
    assert f"left out: {corpus} line 2 is not valid JSON" in shown.err
    assert "2 documents, 4 tokens, 0 empty documents left out, 1 records dropped" in shown.out


def test_second_time_says_that_it_was_complete(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["a"])
    command = ["tokenize", "--input", corpus, "--output", str(tmp_path / "a"), "--tokenizer", tokenizer]
    assert main([*command, "--workers", "1"]) == 0
    assert main([*command, "--workers", "1"]) == 0
    assert "a: was complete, 1 documents, 2 tokens; nothing done" in capsys.readouterr().out


def test_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("megatron_poro.cli.data_tokenize.REDRAW_SECONDS", 0.0)
    with Reporter("data/finnish") as reporter:
        reporter(TokenizingProgress(1, 500, 0, 0, 25, 100, 0))
        reporter(TokenizingProgress(3, 1000, 0, 0, 50, 100, 0))
    *_, last = terminal.getvalue().split("\r\x1b[K")
    assert last.startswith(f"finnish [{'#' * 12}{' ' * 12}] 50.0% of the corpus, 0:00:0")
    assert " left, 3 documents, 1,000 tokens, " in last
    assert last.endswith(" tokens/s\n")


def test_audit_ends_with_status_2_and_the_place(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenize(tmp_path, tokenizer, "a", ["Hyvää"], "--workers", "1")
    tokenize(tmp_path, tokenizer, "b", ["Hyvää"], "--workers", "1")
    prefixes = [str(tmp_path / "data" / name) for name in "ab"]
    assert main(["audit", *prefixes]) == 0
    assert "a: whole; 1 documents, 8 tokens, largest id 219 (layout, ids and checksums)" in capsys.readouterr().out
    tokens = tmp_path / "data" / "b.bin"
    tokens.write_bytes(bytes([tokens.read_bytes()[0] ^ 1]) + tokens.read_bytes()[1:])
    assert main(["audit", *prefixes]) == 2
    shown = capsys.readouterr()
    assert "b: FAULTY" in shown.out
    assert f"poro data: {tokens} bytes 0 to 16, the documents of {tmp_path / 'b.jsonl'}: SHA-256 is" in shown.err


def test_report_prints_a_table_and_writes_a_picture(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenize(tmp_path, tokenizer, "a", ["same", "same", "other\ufffd"], "--workers", "1")
    capsys.readouterr()
    prefix, picture = str(tmp_path / "data" / "a"), tmp_path / "a.svg"
    assert main(["report", prefix, "--tokenizer", tokenizer, "--picture", str(picture)]) == 0
    head, row, repeated, _ = capsys.readouterr().out.splitlines()
    assert head.startswith("dataset")
    assert head.endswith("odd characters")
    assert row.split() == ["a", "3", "19", "1.00", "5", "9", "33.33%", "7.1429%"]
    assert repeated == "a: 2 times: same"
    assert xml.etree.ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_every_verb_answers_help_without_torch() -> None:
    imports = "import sys; sys.modules['torch'] = None; from megatron_poro.cli.data import main"
    code = f"{imports}; main([sys.argv[1], '--help'])"
    for verb in ("tokenize", "merge", "inspect", "audit", "report"):
        result = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, check=False)
        assert result.stdout.startswith(f"usage: poro data {verb}"), result.stderr


def test_unknown_verb_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenise"]) == 2
    assert "tokenise is not a verb; use one of prepare, tokenize, merge" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "  audit     prove that datasets are whole" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge", "--shards", "--output", "m"], "no shards of m are there"),
        (
            ["tokenize", "--input", "a", "--output", "m", "--tokenizer", "t", "--shard", "2/2"],
            "--shard 2/2 must be I/N with I from 0 to N - 1",
        ),
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
