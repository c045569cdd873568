import gzip
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_poro.data.corpus_files import chunks_of_file
from megatron_poro.data.documents import (
    Dropped,
    FileReader,
    Malformed,
    RecordReader,
    read_documents,
    read_texts,
    reader_of_key,
)
from megatron_poro.errors import DataError

TEXTS = ["Hyvää päivää", "", "two\nlines", "\N{GRINNING FACE} tail "] + [f"document {i}" * 40 for i in range(50)]


def json_lines(texts: list[str], *, ascii_only: bool = False) -> bytes:
    return "".join(json.dumps({"id": 7, "text": t}, ensure_ascii=ascii_only) + "\n" for t in texts).encode()


def zstd_frames(content: bytes) -> bytes:
    """Two frames, as parallel compressors write them."""
    compress = zstandard.ZstdCompressor().compress
    return compress(content[:1000]) + compress(content[1000:])


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl": bytes,
    "a.jsonl.gz": gzip.compress,
    "a.jsonl.zst": zstd_frames,
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_every_text_of_every_kind_of_file_is_read_in_order(tmp_path: Path, name: str, ascii_only: bool) -> None:
    (tmp_path / name).write_bytes(ENCODINGS[name](json_lines(TEXTS, ascii_only=ascii_only)))
    assert list(read_texts(tmp_path / name)) == TEXTS


def test_parquet_column_is_read_in_order(tmp_path: Path) -> None:
    table = pyarrow.table({"content": TEXTS, "id": list(range(len(TEXTS)))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    assert list(read_texts(tmp_path / "a.parquet", key="content")) == TEXTS


def test_last_line_needs_no_newline_and_white_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\n{"text": "a"}\r\n  \n{"text": "b"}')
    assert list(read_texts(tmp_path / "a.jsonl")) == ["a", "b"]


@pytest.mark.parametrize("name", [*ENCODINGS, "a.parquet"])
@pytest.mark.parametrize("chunk_bytes", [1, 70, 100_000])
def test_parts_that_meet_hold_every_record_once(tmp_path: Path, name: str, chunk_bytes: int) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), path, row_group_size=7)
    else:
        path.write_bytes(ENCODINGS[name](json_lines(TEXTS)))
    reader, size = reader_of_key(), path.stat().st_size
    bounds = [0, 1, 25, 26, 27, size // 2, size // 2 + 1, size - 1, size]
    read = [
        document
        for begin, end in pairwise(bounds)
        for chunk in reader.chunks(path, chunk_bytes=chunk_bytes, begin=begin, end=end)
        for document in reader.documents(chunk)
    ]
    assert read == TEXTS


@pytest.mark.parametrize("name", ENCODINGS)
def test_lines_are_counted_from_the_start_of_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(ENCODINGS[name](json_lines(["x" * 80] * 10) + b"\n{\n"))
    chunks = list(chunks_of_file(tmp_path / name, chunk_bytes=300))
    assert len(chunks) > 1 or name.endswith(".gz") or name.endswith(".zst")
    problems = [
        document.problem
        for chunk in chunks
        for document in reader_of_key().documents(chunk)
        if isinstance(document, Malformed)
    ]
    assert len(problems) == 1
    assert f"{name} line 12 is not valid JSON" in problems[0]


def test_rule_of_a_source_drops_makes_and_refuses(tmp_path: Path) -> None:
    def extract(record: Mapping[str, Any]) -> list[str | Dropped]:
        if record["kind"] == "book":
            return [Dropped("book")]
        return [record["text"], record["text"].upper()]

    records = [{"kind": "book"}, {"kind": "web", "text": "a"}, {"text": "b"}, {"kind": "web", "text": 3}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    documents = list(read_documents(tmp_path / "a.jsonl", RecordReader("rule", extract)))
    assert documents[:3] == [Dropped("book"), "a", "A"]
    assert [type(document) for document in documents[3:]] == [Malformed, Malformed]
    assert "a.jsonl line 3 has no key 'kind'." in str(documents[3])


def test_function_of_a_file_is_a_reader_too(tmp_path: Path) -> None:
    def read(path: Path) -> Iterator[str | Dropped | Malformed]:
        yield from (line or Dropped("empty") for line in path.read_text().split("|"))
        yield "\ud800"

    (tmp_path / "a.txt").write_text("one||two")
    reader = FileReader("bars", read)
    *documents, last = read_documents(tmp_path / "a.txt", reader)
    assert documents == ["one", Dropped("empty"), "two"]
    assert isinstance(last, Malformed)
    assert "a.txt document 4 holds half of a surrogate pair" in last.problem
    assert list(reader.chunks(tmp_path / "a.txt", begin=3)) == []
    assert len(list(reader.chunks(tmp_path / "a.txt", chunk_bytes=1))) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"a\.jsonl line 3 is not valid JSON"),
        ("\xff", r"a\.jsonl line 3 is not valid JSON in UTF-8"),
        ('{"content": "a", "id": 1}', r"line 3 has no key 'text'; it is an object with keys \['content', 'id'\]"),
        ('["a"]', "line 3 has no keys; it is a list"),
        ('{"text": null}', "line 3 has a NoneType under 'text'"),
        (r'{"text": "a\ud800b"}', "line 3 holds half of a surrogate pair"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    good = b'{"text": "a"}\n'
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + line.encode("latin-1") + b"\n" + good)
    with pytest.raises(DataError, match=message):
        list(read_texts(tmp_path / "a.jsonl"))


def test_missing_parquet_column_is_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"content": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'text'; it has \['content'\]"):
        list(read_texts(tmp_path / "a.parquet"))


def test_null_in_parquet_is_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet row 2 has a NoneType under 'text'"):
        list(read_texts(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_truncated_file_is_an_error_and_not_a_shorter_corpus(tmp_path: Path, name: str) -> None:
    whole = ENCODINGS[name](json_lines(TEXTS))
    (tmp_path / name).write_bytes(whole[:-20])
    with pytest.raises(DataError, match=f"{name} cannot be read after line"):
        list(read_texts(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_file_that_is_not_what_its_name_says_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(json_lines(TEXTS))
    with pytest.raises(DataError, match=f"{name} cannot be read after"):
        list(read_texts(tmp_path / name))


def test_missing_zstandard_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstd_frames(json_lines(TEXTS)))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"a\.jsonl\.zst is compressed with zstandard, .*pip install zstandard"):
        list(read_texts(tmp_path / "a.jsonl.zst"))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.jsonl does not exist"):
        list(read_texts(tmp_path / "b.jsonl"))


def test_unknown_kind_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"a\.txt is of no known kind; .*\.jsonl, \.jsonl\.gz, \.jsonl\.zst, \.parquet"):
        list(read_texts(tmp_path / "a.txt"))
