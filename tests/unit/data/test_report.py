import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.report import DatasetReport, Repeated, odd_characters, picture, report_dataset, table
from megatron_poro.data.tokenizing import tokenize_files
from megatron_poro.tokenizer.bytes import byte_tokenizer

SVG = "{http://www.w3.org/2000/svg}"


def report_of(folder: Path, texts: list[str], *, sample: int = 100, name: str = "out") -> DatasetReport:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenize_files([folder / f"{name}.jsonl"], folder / name, load_tokenizer=byte_tokenizer)
    return report_dataset(IndexedDataset(folder / name), byte_tokenizer(), sample=sample)


def test_numbers_are_those_of_the_documents(tmp_path: Path) -> None:
    report = report_of(tmp_path, ["a" * 7, "b" * 15, "b" * 15, "ää\x00", "c" * 7, "b" * 15])
    assert (report.documents, report.tokens) == (6, 8 + 16 * 3 + 6 + 8)
    assert report.bytes_per_token == 1.0
    assert report.lengths[:6].tolist() == [0, 0, 1, 2, 3, 0]
    assert (report.median_length, report.longest) == (12, 16)
    assert report.duplicates == 2
    assert report.repeated == (Repeated(3, "b" * 15),)
    assert report.odd_share == pytest.approx(1 / 62)


def test_sample_is_spread_over_the_dataset(tmp_path: Path) -> None:
    report = report_of(tmp_path, ["a", "\x01", "\x02", "b"], sample=2)
    assert report.sampled == 2
    assert report.odd_share == 0.0


@pytest.mark.parametrize(
    ("text", "odd"), [("Hyvää päivää.\n\tno\xa0problem 😀 \u200d", 0), ("\x00\x08", 2), ("\ufffd\ue000a", 2)]
)
def test_odd_characters_are_those_nobody_writes(text: str, odd: int) -> None:
    assert odd_characters(text) == odd


def test_table_and_picture_have_a_row_for_each_dataset(tmp_path: Path) -> None:
    reports = [report_of(tmp_path, ["one", "two" * 900], name="big & <odd>"), report_of(tmp_path, ["x"], name="small")]
    assert [line.split("  ")[0] for line in table(reports).splitlines()] == ["dataset", "big & <odd>", "small"]
    root = ElementTree.fromstring(picture(reports))
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"big & <odd>", "small", "1k", "1"} <= set(words)
    bars = [element for element in root.iter(f"{SVG}rect") if element.get("fill") == "#2b6ca3"]
    assert float(bars[0].get("width", 0)) > 100 * float(bars[1].get("width", 0))
    columns = [element for element in root.iter(f"{SVG}rect") if element.get("fill") == "#c2571a"]
    assert len(columns) == 3
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for element in [*bars, *columns]:
        assert 0 <= float(element.get("x", -1)) <= width - float(element.get("width", 0))
        assert 0 <= float(element.get("y", -1)) <= height - float(element.get("height", 0))


def test_picture_of_an_empty_dataset_is_a_picture(tmp_path: Path) -> None:
    empty = DatasetReport("e", 0, 0, {}, 0.0, report_of(tmp_path, ["a"]).lengths * 0, 0, 0, 0, (), 0.0, 0)
    assert ElementTree.fromstring(picture([empty])).tag == f"{SVG}svg"
