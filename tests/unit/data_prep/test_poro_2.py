"""The recipes of Poro 2, each on a small file of its corpus's form."""

from pathlib import Path

import pytest

from megatron_poro.config.load import load_config
from megatron_poro.data.documents import Dropped, read_documents
from megatron_poro.data.recipe import RecipeFolder, Split
from megatron_poro.data.recipe_reader import RecipeReader, corpus_files
from tests.unit.data_prep.raw_corpora import put_parquet

FOLDER = RecipeFolder(Path(__file__).parents[3] / "data_prep" / "recipes" / "poro_2")

WEB = {"id": "<urn:uuid:1>", "dump": "CC-MAIN-2024-10", "url": "https://x.fi", "file_path": "s3://commoncrawl/1"}
FINEWEB_2 = {**WEB, "date": "2024", "language": "fin", "language_score": 0.9, "language_script": "Latn"}
FINEWEB_EDU = {**WEB, "language": "en", "language_score": 0.9, "token_count": 3, "score": 3.1, "int_score": 3}
INFIWEBMATH = {
    "url": "https://x.org",
    "metadata": "{}",
    "score": 4.1,
    "int_score": 4,
    "token_count": 3,
    "char_count": 9,
}
FINEMATH = {**INFIWEBMATH, "fetch_time": 1, "warc_filename": "w", "crawl": "CC-MAIN-2024-10", "language": "en"}
CODE = {"max_stars_repo_path": "a.py", "max_stars_repo_name": "a/b", "max_stars_count": 1, "id": "1"}

FILES = [
    ("finnish", "fineweb-2/data/fin_Latn/train/000_00000.parquet", FINEWEB_2, "text"),
    ("fineweb_edu", "fineweb-edu/data/CC-MAIN-2024-10/train-00000-of-00014.parquet", FINEWEB_EDU, "text"),
    ("finemath", "finemath/finemath-4plus/train-00000-of-00064.parquet", FINEMATH, "text"),
    ("finemath", "finemath/infiwebmath-4plus/train-00000-of-00064.parquet", INFIWEBMATH, "text"),
    ("starcoder", "starcoder/python/train-00000-of-00059.parquet", CODE, "content"),
]


@pytest.mark.parametrize(("source", "file", "others", "key"), FILES)
def test_the_text_of_every_row_is_a_document(
    tmp_path: Path, source: str, file: str, others: dict[str, object], key: str
) -> None:
    put_parquet(tmp_path / file, [{**others, key: text} for text in ("Hyvää huomenta.", " ", "<filename>a\nb")])
    (found,) = [files for files in corpus_files(FOLDER, source, raw=tmp_path, split=Split.TRAIN).values() if files]
    assert [each.path for each in found] == [tmp_path / file]
    assert list(read_documents(found[0].path, found[0].reader)) == [
        "Hyvää huomenta.",
        Dropped("empty text"),
        "<filename>a\nb",
    ]


def test_only_the_column_of_the_text_is_read(tmp_path: Path) -> None:
    path = put_parquet(tmp_path / "a.parquet", [{**FINEWEB_EDU, "text": "a"}])
    (chunk,) = RecipeReader(FOLDER, "fineweb_edu").chunks(path)
    assert list(chunk.records()) == [{"text": "a"}]


def test_the_sources_are_those_of_the_mixture() -> None:
    train = load_config(["experiment=smoke_cpu", "data=poro_2"]).data.train
    assert {source.name: source.weight for source in train} == {
        "finnish": 0.3,
        "fineweb_edu": 0.3,
        "starcoder": 0.3,
        "finemath": 0.1,
    }
    assert {recipe.source for recipe in FOLDER.recipes} == {source.name for source in train}
    assert [recipe.name for recipe in FOLDER.of_source("finemath")] == [
        "finemath/finemath-4plus",
        "finemath/infiwebmath-4plus",
    ]


def test_the_test_part_of_fineweb_2_is_held_out(tmp_path: Path) -> None:
    row = {**FINEWEB_2, "text": "a"}
    train, test = (
        put_parquet(tmp_path / f"fineweb-2/data/fin_Latn/{part}/000_00000.parquet", [row]) for part in ("train", "test")
    )
    recipe = FOLDER.recipe("finnish")
    assert [recipe.files(tmp_path, split) for split in Split] == [[train], [test]]
