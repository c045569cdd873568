import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.data.tokenizing import TokenizingProgress, tokenize_files
from megatron_poro.errors import DataError
from megatron_poro.tokenizer.bytes import byte_tokenizer
from megatron_poro.tokenizer.tokenizer import Tokenizer


class FailingTokenizer(Tokenizer):
    """The byte tokenizer, but some texts raise and some kill the process."""

    def __init__(self) -> None:
        self.__dict__.update(byte_tokenizer().__dict__)

    def encode_batch(self, texts: object) -> list[list[int]]:
        assert isinstance(texts, list)
        if "die" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        if "raise" in texts:
            raise ArithmeticError("no such number")
        return super().encode_batch(texts)


def write_corpus(path: Path, texts: list[str], *, key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def uneven_texts(seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return ["first " * 20_000] + [f"text {i} " * int(random.integers(0, 30)) for i in range(200)]


def test_document_is_the_ids_of_its_text_and_one_end(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["ab", "ö<s>"])
    tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer)
    dataset = IndexedDataset(tmp_path / "out")
    documents = [dataset.document(i).tolist() for i in range(len(dataset))]
    assert documents == [[24 + 97, 24 + 98, 2], [24 + 0xC3, 24 + 0xB6, 1, 2]]


def test_result_does_not_depend_on_workers_or_chunks(tmp_path: Path) -> None:
    """The first chunk takes longest by far, so every later one is done before its turn."""
    inputs = [write_corpus(tmp_path / f"{i}.jsonl", uneven_texts(i)) for i in range(2)]
    one = tokenize_files(inputs, tmp_path / "one", load_tokenizer=byte_tokenizer)
    many = tokenize_files(inputs, tmp_path / "many", load_tokenizer=byte_tokenizer, workers=2, chunk_bytes=300)
    assert one == many
    for suffix in (".bin", ".idx", ".meta.json"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"many{suffix}").read_bytes()


def test_empty_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["", "ab", "", " "])
    metadata = tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer)
    assert metadata.empty_documents == 2
    assert IndexedDataset(tmp_path / "out").sizes.tolist() == [3, 2]


def test_side_file_says_what_the_dataset_was_made_of(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["ab", "", "c"], key="content")
    metadata = tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer, key="content")
    assert metadata == DatasetMetadata(
        tokenizer=byte_tokenizer().fingerprint,
        vocab_size=280,
        documents=2,
        tokens=5,
        max_token_id=24 + 99,
        empty_documents=1,
        inputs=(str(corpus),),
    )
    assert IndexedDataset(tmp_path / "out").metadata() == metadata


def test_progress_grows_to_the_result(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["ab", "", "c"])
    seen: list[TokenizingProgress] = []
    tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer, chunk_bytes=1, on_progress=seen.append)
    assert seen == [TokenizingProgress(1, 3, 0), TokenizingProgress(1, 3, 1), TokenizingProgress(2, 5, 1)]


@pytest.mark.parametrize(
    ("workers", "bad", "message"),
    [
        (1, '{"text": 3}', r"a\.jsonl line 41 has a int under 'text'"),
        (2, '{"text": 3}', r"a\.jsonl line 41 has a int under 'text'"),
        (1, '{"text": "raise"}', r"tokenizing .*a\.jsonl lines 41 to 41 failed: ArithmeticError: no such number"),
    ],
)
def test_failure_names_the_place_and_leaves_nothing(tmp_path: Path, workers: int, bad: str, message: str) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["fine"] * 40)
    corpus.write_text(corpus.read_text() + bad + "\n" + '{"text": "fine"}\n')
    with pytest.raises(DataError, match=message):
        tokenize_files([corpus], tmp_path / "out", load_tokenizer=FailingTokenizer, workers=workers, chunk_bytes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_killed_worker_is_an_error_that_says_where(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["fine"] * 40 + ["die"] + ["fine"] * 40)
    with pytest.raises(DataError, match=r"exit code -9 at .*a\.jsonl lines 41 to 41.*fewer --workers"):
        tokenize_files([corpus], tmp_path / "out", load_tokenizer=FailingTokenizer, workers=2, chunk_bytes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_corpus_without_documents_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["", ""])
    with pytest.raises(DataError, match=r"a\.jsonl hold no document with a token"):
        tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_no_corpus_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no corpus files were named"):
        tokenize_files([], tmp_path / "out", load_tokenizer=byte_tokenizer)
