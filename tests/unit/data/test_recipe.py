"""Recipes in a folder of a user's own."""

import json
import pickle
from pathlib import Path

import pytest

from megatron_poro.data.documents import Dropped, Malformed, read_documents
from megatron_poro.data.recipe import RecipeFolder, Split, one_document, parse_options, plain_text
from megatron_poro.data.recipe_reader import RecipeReader, corpus_files
from megatron_poro.data.recipe_sample import sample_texts
from megatron_poro.errors import ConfigError, DataError

RECIPE = """
from megatron_poro.data.recipe import Recipe, one_document
from ._shared import shout


def recipes(ending="!"):
    def extract(record):
        return one_document(shout(record["text"], ending))
    return [
        Recipe(
            name=name, source="both", origin="here", licence="none", form="known", extract=extract,
            train=(f"{name}/*.jsonl", f"{name}/*.hub.json", f"{name}/*.words"),
            validation=(f"{name}/held_*.jsonl",),
            formats={".words": lambda path: ({"text": word} for word in path.read_text().split())},
        )
        for name in ("a", "b")
    ]
"""
SHARED = "def shout(text, ending):\n    return text.upper() + ending if text else text\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "recipes"
    place.mkdir()
    (place / "mine.py").write_text(RECIPE)
    (place / "_shared.py").write_text(SHARED)
    return place


def write(path: Path, *texts: str) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_files_of_a_folder_share_code_and_take_options(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "raw/a/1.jsonl", "yes", "", "no")
    assert list(read_documents(path, RecipeReader(RecipeFolder(folder), "a"))) == ["YES!", Dropped("empty text"), "NO!"]
    optioned = RecipeFolder(folder, {"mine": {"ending": "?"}})
    assert next(read_documents(path, RecipeReader(optioned, "a"))) == "YES?"


def test_a_reader_can_be_sent_to_a_process_that_has_not_seen_the_folder(folder: Path, tmp_path: Path) -> None:
    reader = RecipeReader(RecipeFolder(folder, {"mine": {"ending": "?"}}), "b")
    path = write(tmp_path / "raw/b/1.jsonl", "yes")
    assert list(read_documents(path, reader)) == ["YES?"]  # by now its functions, which cannot be pickled, are held
    received: RecipeReader = pickle.loads(pickle.dumps(reader))
    assert received == reader
    assert received.name == reader.name
    assert list(read_documents(path, received)) == ["YES?"]


def test_files_are_in_order_of_names_and_held_out_ones_are_not_trained_on(folder: Path, tmp_path: Path) -> None:
    for name in ("a/2.jsonl", "a/1.jsonl", "a/held_1.jsonl", "b/1.jsonl", "other/1.jsonl"):
        write(tmp_path / "raw" / name, name)
    found = {
        split: {
            recipe: [file.path.name for file in files]
            for recipe, files in corpus_files(RecipeFolder(folder), "both", raw=tmp_path / "raw", split=split).items()
        }
        for split in Split
    }
    assert found[Split.TRAIN] == {"a": ["1.jsonl", "2.jsonl"], "b": ["1.jsonl"]}
    assert found[Split.VALIDATION] == {"a": ["held_1.jsonl"], "b": []}


def test_a_format_of_its_own_is_read_in_groups_and_belongs_to_the_part_from_0(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.words"
    path.write_text(" ".join(f"word{n}" for n in range(600)))
    reader = RecipeReader(RecipeFolder(folder), "a")
    chunks = list(reader.chunks(path))
    assert [chunk.place(0) for chunk in chunks] == [f"{path} record {first}" for first in (1, 257, 513)]
    documents = [document for chunk in pickle.loads(pickle.dumps(chunks)) for document in reader.documents(chunk)]
    assert documents == [f"WORD{n}!" for n in range(600)]
    assert list(reader.chunks(path, begin=10)) == []


def test_a_file_can_stand_for_a_dataset_of_the_hub(folder: Path, tmp_path: Path) -> None:
    """Here the library streams from this machine; the Hub is another path in the same arguments."""
    source = write(tmp_path / "far/1.jsonl", "one", "two", "three", "four")
    other = write(tmp_path / "far/2.jsonl", "five")
    pointer = tmp_path / "a.hub.json"
    arguments = {"path": "json", "data_files": [str(source), str(other)], "split": "train"}
    pointer.write_text(json.dumps(arguments))
    reader = RecipeReader(RecipeFolder(folder), "a")
    assert list(read_documents(pointer, reader)) == ["ONE!", "TWO!", "THREE!", "FOUR!", "FIVE!"]
    pointer.write_text(json.dumps({**arguments, "shard": [1, 2]}))
    assert list(read_documents(pointer, reader)) == ["FIVE!"]


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"path": "json", "data_files": "nowhere.jsonl"}'])
def test_a_dataset_that_cannot_be_streamed_is_named(folder: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "a.hub.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.hub\.json: the dataset cannot be streamed"):
        list(read_documents(tmp_path / "a.hub.json", RecipeReader(RecipeFolder(folder), "a")))


def test_the_fingerprint_follows_files_and_options(folder: Path) -> None:
    first = RecipeFolder(folder).fingerprint
    assert RecipeFolder(folder, {}).fingerprint == first
    assert RecipeFolder(folder, {"mine": {"ending": "?"}}).fingerprint != first
    (folder / "_shared.py").write_text(SHARED.replace("upper", "lower"))
    assert RecipeFolder(folder).fingerprint != first


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("other.py", "x = 1\n", r"other\.py has no function recipes\(\)"),
        ("other.py", RECIPE, "has 2 recipes called 'a'"),
    ],
)
def test_a_wrong_folder_is_refused(folder: Path, file: str, content: str, complaint: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ConfigError, match=complaint):
        _ = RecipeFolder(folder).recipes


def test_a_record_that_is_not_of_the_schema_is_malformed(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    path.write_text('{"body": "a"}\n')
    (document,) = read_documents(path, RecipeReader(RecipeFolder(folder), "a"))
    assert document == Malformed(f"{path} line 1 has no key 'text'.")


def test_plain_text_wants_a_text() -> None:
    assert plain_text({"text": "a"}) == ["a"]
    assert plain_text({"text": " \n"}) == one_document("") == [Dropped("empty text")]
    with pytest.raises(TypeError, match="has a int under 'text'"):
        plain_text({"text": 1})


def test_options_are_read_by_file() -> None:
    assert parse_options(["a.x=1", "a.y=b=c", "d.z="]) == {"a": {"x": "1", "y": "b=c"}, "d": {"z": ""}}


@pytest.mark.parametrize("entry", ["x", "x=1", ".x=1", "a.=1", "a.x"])
def test_other_forms_of_options_are_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"is not FILE\.OPTION=VALUE"):
        parse_options([entry])


def test_a_sample_is_an_equal_share_of_files_spread_over_the_corpus(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_poro.data.recipe_sample.FILES_SAMPLED", 4)
    for number in range(8):
        write(tmp_path / f"raw/a/{number}.jsonl", f"{number}" * 8, f"{number}" * 8)
    files = corpus_files(RecipeFolder(folder), "both", raw=tmp_path / "raw", split=Split.TRAIN)["a"]
    assert list(sample_texts(files, characters=40)) == [
        *("00000000!", "0"),
        *("22222222!", "2"),
        *("44444444!", "4"),
        *("66666666!", "6"),
    ]


def test_a_sample_stops_at_a_malformed_record_unless_these_are_skipped(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "raw/a/1.jsonl", "first")
    path.write_text("{\n" + path.read_text())
    files = corpus_files(RecipeFolder(folder), "both", raw=tmp_path / "raw", split=Split.TRAIN)["a"]
    with pytest.raises(DataError, match="line 1 is not valid JSON"):
        list(sample_texts(files, characters=10))
    assert list(sample_texts(files, characters=10, skip_malformed=True)) == ["FIRST!"]
