"""The sample corpora as they lie on the disk: real text, the same every time, no text on two sides."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep import sample_corpora
from data_prep.recipes.sample.documents import Source
from data_prep.recipes.sample.own_texts import sentence_pairs
from megatron_poro.errors import DataError

REPOSITORY = Path(__file__).parents[3]
SOURCES = ("slimpajama", "finnish", "tatoeba_en_fi", "tatoeba_fi_en", "starcoder", "gutenberg")
PARTS = ("train", "validation")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with freshly built corpora."""
    folder = tmp_path_factory.mktemp("corpora")
    sample_corpora.build(folder)
    return folder


def texts(folder: Path, source: str, part: str) -> list[str]:
    key = "content" if source == "starcoder" else "text"
    lines = (folder / f"{source}.{part}.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert all(list(record) == [key] for record in records)
    return [record[key] for record in records]


def all_texts(folder: Path) -> Iterator[str]:
    for source in SOURCES:
        for part in PARTS:
            yield from texts(folder, source, part)


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return content


def test_manifest_describes_what_was_written(corpora: Path) -> None:
    manifest = manifest_of(corpora)
    assert tuple(manifest["sources"]) == SOURCES
    for source, entry in manifest["sources"].items():
        assert entry["origin"]
        assert entry["licence"]
        for part in PARTS:
            written = texts(corpora, source, part)
            content = (corpora / entry[part]["file"]).read_bytes()
            assert entry[part]["documents"] == len(written) > 0
            assert entry[part]["characters"] == sum(map(len, written))
            assert entry[part]["sha256"] == hashlib.sha256(content).hexdigest()


def test_another_process_with_another_hash_seed_writes_the_same_bytes(corpora: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep.sample_corpora", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in corpora.iterdir()
    }


def test_no_text_is_in_two_places(corpora: Path) -> None:
    everything = list(all_texts(corpora))
    assert len(set(everything)) == len(everything)


def test_the_size_suits_a_test_run(corpora: Path) -> None:
    assert 2_000_000 < sum(map(len, all_texts(corpora))) < 4_000_000
    for source in SOURCES:
        characters = {part: sum(map(len, texts(corpora, source, part))) for part in PARTS}
        assert 0.02 < characters["validation"] / characters["train"] < 0.5


def test_code_is_tagged_with_its_file(corpora: Path) -> None:
    for part in PARTS:
        for text in texts(corpora, "starcoder", part):
            tag, _, content = text.partition("\n")
            assert tag.startswith("<filename>")
            assert tag.endswith(".py")
            assert content


def test_finnish_is_running_finnish_text(corpora: Path) -> None:
    written = [text for part in PARTS for text in texts(corpora, "finnish", part)]
    joined = "\n".join(written)
    words = [word.strip(".,!?:;”\"'()–").lower() for word in joined.split()]
    assert len(written) >= 30
    assert len(joined) > 40_000
    assert min(map(len, written)) > 800
    # About one letter in twenty of Finnish text is ä; nearly half the running words of any longer text are distinct.
    assert 0.03 < joined.count("ä") / len(joined) < 0.07
    assert len(set(words)) > 0.3 * len(words)
    assert {"ja", "on", "ei", "että", "niin", "mutta"} <= set(words)
    assert {"the", "and", "och"}.isdisjoint(words)


def test_both_directions_of_a_pair_are_on_one_side(corpora: Path) -> None:
    for part in PARTS:
        into_finnish = texts(corpora, "tatoeba_en_fi", part)
        into_english = texts(corpora, "tatoeba_fi_en", part)
        assert [pair_of(text) for text in into_finnish] == [pair_of(text)[::-1] for text in into_english]


def pair_of(document: str) -> tuple[str, str]:
    """Source and target sentence of a translation document."""
    request, _, target = document.partition(" <|assistant|>")
    return request.partition(": ")[2], target


def test_sentence_pairs_are_many_and_distinct() -> None:
    pairs = sentence_pairs()
    assert len(pairs) >= 300
    assert len({english for english, _ in pairs}) == len({finnish for _, finnish in pairs}) == len(pairs)
    assert all(english != finnish for english, finnish in pairs)


@pytest.mark.parametrize("line", ["only one", "one\ttwo\tthree", "one\t "])
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(f"english\tfinnish\nYes.\tKyllä.\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs\.tsv line 3 is not two sentences"):
        sentence_pairs(path)


def test_pairs_without_their_header_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("Yes.\tKyllä.\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs\.tsv begins with"):
        sentence_pairs(path)


@pytest.mark.parametrize(("option", "separator"), [([], " "), (["--tatoeba-separator", "newline"], "\n")])
def test_the_separator_reaches_both_translation_corpora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: list[str], separator: str
) -> None:
    only_translations(monkeypatch)
    assert sample_corpora.main(["--output", str(tmp_path), *option]) == 0
    for source in ("tatoeba_en_fi", "tatoeba_fi_en"):
        assert all(f"{separator}<|assistant|>" in text for text in texts(tmp_path, source, "train"))


def only_translations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the sources that read the standard library, which takes a second."""
    every = sample_corpora.sources

    def few(*, separator: str) -> list[Source]:
        return [source for source in every(separator=separator) if source.name.startswith("tatoeba")]

    monkeypatch.setattr(sample_corpora, "sources", few)


def test_an_output_that_is_a_file_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only_translations(monkeypatch)
    (tmp_path / "taken").write_text("")
    assert sample_corpora.main(["--output", str(tmp_path / "taken")]) == 2
    assert "taken" in capsys.readouterr().err
