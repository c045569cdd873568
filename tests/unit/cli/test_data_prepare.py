"""One command from raw files to everything that a run reads."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_poro.cli.data import main
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.tokenizer.tokenizer import Tokenizer
from tests.unit.data_prep import raw_corpora

RECIPES = str(Path(__file__).parents[3] / "data_prep" / "recipes" / "poro_34b")
VOCAB_SIZE = 384

SOURCES = ("slimpajama", "finnish", "tatoeba_en_fi", "tatoeba_fi_en", "starcoder", "gutenberg")
DATASETS = sorted(f"{source}.{part}" for source in SOURCES for part in ("train", "validation"))


@pytest.fixture(autouse=True)
def command_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets for its process is put back."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    package = logging.getLogger("megatron_poro")
    for name, value in (("handlers", package.handlers), ("propagate", package.propagate), ("level", package.level)):
        monkeypatch.setattr(package, name, value)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    raw_corpora.write_all(folder)
    return folder


def prepare(raw: Path, output: Path, *options: str, overrides: Sequence[str] = ()) -> int:
    words = (
        "experiment=smoke_cpu",
        f"model.vocab_size={VOCAB_SIZE}",
        f"data.folder={output / 'data'}",
        f"tokenizer.path={output / 'tokenizer'}",
        *overrides,
    )
    return main(["prepare", *words, "--recipes", RECIPES, "--raw", str(raw), "--workers", "1", *options])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_command_makes_tokenizer_datasets_plan_and_report(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(raw, tmp_path) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out

    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert sorted(path.stem for path in (tmp_path / "data").glob("*.idx")) == DATASETS
    slimpajama = IndexedDataset(tmp_path / "data" / "slimpajama.train")
    assert slimpajama.num_documents == 60  # two files of 40 without a quarter of books
    first = tokenizer.decode(slimpajama.document(0).tolist())
    assert first == raw_corpora.sentence(0, "train/chunk1/example_train_0") + "</s>"

    assert "slimpajama.train: 20 records left out: book" in shown
    assert "finnish.train: 2 records left out: deleted" in shown
    learnt = re.findall(r"tokenizer: learns from ([\d,]+) characters of (\w+)", shown)
    assert [source for _, source in learnt] == ["slimpajama", "finnish", "starcoder"]
    assert len({characters for characters, _ in learnt}) == 1
    assert re.search(r"^source +weight .* epochs", shown, re.MULTILINE)  # the plan
    assert (tmp_path / "data" / "report.svg").stat().st_size > 0


def test_given_again_it_changes_nothing(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(raw, tmp_path) == 0
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert prepare(raw, tmp_path) == 0
    assert snapshot(tmp_path) == before
    shown = capsys.readouterr().out
    assert shown.count("was complete") == len(DATASETS)
    assert "trained" not in shown


def test_several_workers_import_the_recipes_for_themselves_and_give_the_same_files(raw: Path, tmp_path: Path) -> None:
    for name, workers in (("one", "1"), ("two", "2")):
        path = tmp_path / name / "data" / "finnish"
        only_finnish = [f"data.train=[{{name: finnish, path: '{path}', weight: 1}}]", "data.validation=[]"]
        assert prepare(raw, tmp_path / name, "--workers", workers, overrides=only_finnish) == 0
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_the_sample_of_the_tokenizer_is_equal_between_sources(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(raw, tmp_path, "--sample-characters", "3k") == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    shares = [int(found.replace(",", "")) for found in re.findall(r"learns from ([\d,]+) characters", shown)]
    assert len(shares) == 3
    assert len(set(shares)) == 1
    assert 1_000 < shares[0] <= 3_000


def test_the_kind_of_tokenizer_is_that_of_the_config(raw: Path, tmp_path: Path) -> None:
    overrides = ["tokenizer.kind=sentencepiece", "data.validation=[]", "model.vocab_size=448"]
    assert prepare(raw, tmp_path, overrides=overrides) == 0
    assert Tokenizer.load(tmp_path / "tokenizer").token_id("<0x00>") is not None


def test_options_of_recipes_reach_the_datasets(raw: Path, tmp_path: Path) -> None:
    assert prepare(raw, tmp_path, "--option", "tatoeba.separator=newline") == 0
    dataset = IndexedDataset(tmp_path / "data" / "tatoeba_en_fi.train")
    document = Tokenizer.load(tmp_path / "tokenizer").decode(dataset.document(0).tolist())
    assert document == "<|user|>Translate into Finnish: English sentence 0.\n<|assistant|>Suomen virke 0.</s>"


def test_a_missing_corpus_is_refused_before_anything_is_made_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw_corpora.write_all(tmp_path / "raw")
    (tmp_path / "raw" / "finnish" / "yle" / "fi" / "2011" / "0001.json").unlink()
    assert prepare(tmp_path / "raw", tmp_path) == 2
    assert "source finnish has no raw files of finnish/yle below" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "tokenizer").exists()
    assert prepare(tmp_path / "raw", tmp_path, "--allow-missing") == 0
    assert "finnish.train: left out, since there are no raw files: finnish/yle" in capsys.readouterr().out


def test_raw_files_may_be_gone_once_the_dataset_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_corpora.write_all(tmp_path / "raw")
    assert prepare(tmp_path / "raw", tmp_path) == 0
    before = snapshot(tmp_path / "data")
    for path in (tmp_path / "raw" / "gutenberg").rglob("*.gz"):
        path.unlink()
    assert prepare(tmp_path / "raw", tmp_path) == 0
    assert "gutenberg.train: kept as it is" in capsys.readouterr().out
    assert snapshot(tmp_path / "data") == before


def test_malformed_records_end_the_command_or_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_corpora.write_all(tmp_path / "raw")
    damaged = raw_corpora.put(tmp_path / "raw/finnish/cc-fi/part-1.jsonl", b'{"text": "a"}\n{"text": \n')
    assert prepare(tmp_path / "raw", tmp_path) == 2
    assert f"{damaged} line 2 is not valid JSON" in capsys.readouterr().err
    assert prepare(tmp_path / "raw", tmp_path, "--malformed", "skip") == 0
    assert "finnish.train: 1 records left out: malformed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "overrides", "complaint"),
    [
        (["--raw", "nowhere"], [], "--raw nowhere is not a folder"),
        (["--recipes", "nowhere"], [], "--recipes nowhere holds no recipes"),
        (["--option", "separator=newline"], [], "is not FILE.OPTION=VALUE"),
        (["--option", "tatoeba.sep=newline"], [], "sep is not an option of"),
        (["--option", "opus.separator=newline"], [], "opus is no file of"),
        (["--workers", "0"], [], "--workers 0 must be at least 1"),
        ([], ["data.train.0.name=pile"], "has no recipe for source 'pile'; its sources are finnish, gutenberg"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    overrides: list[str],
    complaint: str,
) -> None:
    assert prepare(raw, tmp_path, *options, overrides=overrides) == 2
    shown = capsys.readouterr().err
    assert complaint in shown
    assert len(shown.splitlines()) == 1


def test_a_tokenizer_larger_than_the_model_is_refused(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(raw, tmp_path) == 0
    assert prepare(raw, tmp_path, overrides=["model.vocab_size=256"]) == 2
    assert f"has {VOCAB_SIZE} ids, model.vocab_size=256" in capsys.readouterr().err


def test_a_dataset_of_something_else_is_replaced_only_when_asked(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(raw, tmp_path) == 0
    option = ["--option", "tatoeba.separator=newline"]
    assert prepare(raw, tmp_path, *option) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert prepare(raw, tmp_path, *option, "--overwrite") == 0


def test_the_manifest_names_recipe_and_counts(raw: Path, tmp_path: Path) -> None:
    assert prepare(raw, tmp_path) == 0
    manifest = json.loads((tmp_path / "data" / "finnish.train.manifest.json").read_text(encoding="utf-8"))
    readers = [file["reader"].split(" of ")[0] for file in manifest["files"]]
    assert readers[:2] == ["recipe finnish/parsebank", "recipe finnish/mc4-fi"]
    assert readers[-1] == "recipe finnish/yle"
