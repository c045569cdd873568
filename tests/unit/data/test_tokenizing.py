import gzip
import json
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_poro.data.documents import CorpusFile, Dropped, RecordReader
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.ledger import CHUNKS_PER_RECORD, TokenizingProgress
from megatron_poro.data.manifest import read_manifest, sha256_of
from megatron_poro.data.merging import find_shards, merge_datasets
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.data.partial import PartialDataset
from megatron_poro.data.tokenizing import Shard, shard_prefix, tokenize_corpus, tokenize_files
from megatron_poro.errors import DataError
from megatron_poro.tokenizer.bytes import byte_tokenizer
from megatron_poro.tokenizer.tokenizer import Tokenizer


def text_or_failure(record: Mapping[str, Any]) -> list[str | Dropped]:
    """A rule that some texts make raise and others kill the process."""
    if record["text"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return [Dropped("book") if record["text"] == "book" else record["text"]]


FRAGILE = RecordReader("fragile", text_or_failure)


def fragile(*paths: Path) -> list[CorpusFile]:
    return [CorpusFile(path, FRAGILE) for path in paths]


class RefusingTokenizer(Tokenizer):
    """The byte tokenizer as the library runs it, for which a text is too much."""

    def __init__(self) -> None:
        definition = json.loads(byte_tokenizer().definition)
        super().__init__(json.dumps({**definition, "normalizer": {"type": "NFC"}}), {"eos_token": "</s>"})

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if "raise" in texts:
            raise ArithmeticError("no such number")
        return super().encode_batch(texts)


SUFFIXES = (".bin", ".idx", ".meta.json", ".manifest.json")


def files_of(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}{suffix}").read_bytes() for suffix in SUFFIXES]


def write_corpus(path: Path, texts: list[str], *, key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
    return path


class Killed(BaseException):
    """Stands for a process that is gone: nothing catches it."""


def die(*_: object) -> None:
    raise Killed


def killed_after(inputs: list[Path], output: Path, *, chunks: int) -> None:
    """Tokenizes until so many chunks are written and is then gone, with what was not flushed lost."""
    left = iter(range(chunks))

    def count(_: TokenizingProgress) -> None:
        if next(left, None) is None:
            raise Killed

    tokenize_files(inputs, output, load_tokenizer=byte_tokenizer, chunk_bytes=300, on_progress=count)


def tokenize_and_be_killed(corpus: Path, output: Path, chunks: int) -> None:
    left = iter(range(chunks))

    def count(_: TokenizingProgress) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    tokenize_files([corpus], output, load_tokenizer=byte_tokenizer, chunk_bytes=300, on_progress=count)


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
    assert files_of(tmp_path / "one") == files_of(tmp_path / "many")


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
    tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer, chunk_bytes=10, on_progress=seen.append)
    assert [progress.source_bytes for progress in seen] == sorted({progress.source_bytes for progress in seen})
    size = corpus.stat().st_size
    assert seen[-1] == TokenizingProgress(2, 5, 1, 0, size, size, 0)


def test_manifest_accounts_for_every_record_of_every_file(tmp_path: Path) -> None:
    first = write_corpus(tmp_path / "a.jsonl", ["ab", "book", "", "book"])
    second = write_corpus(tmp_path / "b.jsonl", ["c"])
    second.write_text(second.read_text() + "{\n")
    tokenize_corpus(
        fragile(first, second), tmp_path / "out", load_tokenizer=byte_tokenizer, skip_malformed=True, chunk_bytes=20
    )
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.dropped == {"book": 2, "malformed": 1}
    a, b = manifest.files
    assert (a.path, a.reader, a.source_bytes) == (str(first), "fragile", first.stat().st_size)
    assert (a.documents, a.tokens, a.empty_documents, a.dropped) == (1, 3, 1, {"book": 2})
    assert (b.documents, b.tokens, b.empty_documents, b.dropped) == (1, 2, 0, {"malformed": 1})
    assert [problem.split(" is not")[0] for problem in b.malformed] == [f"{second} line 2"]
    assert manifest.idx_sha256 == sha256_of(tmp_path / "out.idx")
    assert a.sha256 == sha256_of(tmp_path / "out.bin", end=6)
    assert b.sha256 == sha256_of(tmp_path / "out.bin", begin=6)


@pytest.mark.parametrize("of", [1, 3, 50])
def test_shards_join_to_the_bytes_of_the_whole(tmp_path: Path, of: int) -> None:
    inputs = [write_corpus(tmp_path / f"{i}.jsonl", uneven_texts(i)) for i in range(2)]
    inputs.append(write_corpus(tmp_path / "empty.jsonl", []))
    inputs.append(tmp_path / "c.jsonl.gz")
    inputs[-1].write_bytes(gzip.compress(inputs[1].read_bytes()))
    tokenize_files(inputs, tmp_path / "whole", load_tokenizer=byte_tokenizer)
    for index in range(of):
        shard = Shard(index, of)
        tokenize_files(inputs, shard_prefix(tmp_path / "m", shard), load_tokenizer=byte_tokenizer, shard=shard)
    merge_datasets(find_shards(tmp_path / "m"), tmp_path / "m")
    assert files_of(tmp_path / "m") == files_of(tmp_path / "whole")


def test_missing_shard_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", uneven_texts(0))
    for index in (0, 2):
        shard = Shard(index, 3)
        tokenize_files([corpus], shard_prefix(tmp_path / "m", shard), load_tokenizer=byte_tokenizer, shard=shard)
    with pytest.raises(DataError, match=r"not all shards 0 to 2 of one corpus"):
        merge_datasets(find_shards(tmp_path / "m"), tmp_path / "m")


def test_damaged_tokens_of_a_shard_are_found_when_it_is_merged(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", uneven_texts(0))
    for index in range(2):
        shard = Shard(index, 2)
        tokenize_files([corpus], shard_prefix(tmp_path / "m", shard), load_tokenizer=byte_tokenizer, shard=shard)
    damaged = Path(f"{shard_prefix(tmp_path / 'm', Shard(1, 2))}.bin")
    content = bytearray(damaged.read_bytes())
    content[10] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"{damaged.name} is damaged between bytes 0 and \d+, the documents of .*a\.jsonl"
    ):
        merge_datasets(find_shards(tmp_path / "m"), tmp_path / "m")
    assert not (tmp_path / "m.bin").exists()


@pytest.mark.parametrize("kills", [1, 2, 3])
def test_killed_command_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, kills: int) -> None:
    """Killed without warning again and again, each time a little later, wherever that happens to be."""
    inputs = [write_corpus(tmp_path / f"{i}.jsonl", uneven_texts(i)) for i in range(3)]
    tokenize_files(inputs, tmp_path / "whole", load_tokenizer=byte_tokenizer, chunk_bytes=300)
    resumed = []
    for attempt in range(kills):
        with pytest.raises(Killed):
            killed_after(inputs, tmp_path / "out", chunks=70 + 11 * attempt)
    tokenize_files(
        inputs,
        tmp_path / "out",
        load_tokenizer=byte_tokenizer,
        chunk_bytes=300,
        workers=1 + kills % 2,
        on_progress=lambda progress: resumed.append(progress.resumed_tokens),
    )
    assert resumed[0] > 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_kill_9_loses_at_most_what_was_not_recorded(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", uneven_texts(0))
    tokenize_files([corpus], tmp_path / "whole", load_tokenizer=byte_tokenizer, chunk_bytes=300)
    child = multiprocessing.get_context("spawn").Process(
        target=tokenize_and_be_killed, args=(corpus, tmp_path / "out", CHUNKS_PER_RECORD + 9)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    resumed: list[int] = []
    tokenize_files(
        [corpus],
        tmp_path / "out",
        load_tokenizer=byte_tokenizer,
        chunk_bytes=300,
        on_progress=lambda progress: resumed.append(progress.resumed_tokens),
    )
    assert resumed[0] > 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("step", range(6))
def test_kill_while_publishing_is_completed_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", uneven_texts(0))
    tokenize_files([corpus], tmp_path / "whole", load_tokenizer=byte_tokenizer)
    steps = iter(range(100))
    real = os.replace

    def replace_or_die(source: Path, target: Path) -> None:
        counted = Path(target).name in ("idx", "out.bin", "out.meta.json", "out.manifest.json", "out.idx")
        if counted and next(steps) == step:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("megatron_poro.data.partial.os.replace", replace_or_die)
        if step == 5:  # after the last rename, before the folder is tidied away
            patch.setattr(PartialDataset, "discard", die)
        with pytest.raises(Killed):
            tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer)
    assert step == 5 or not (tmp_path / "out.idx").exists()
    tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_work_on_a_file_that_has_changed_since_is_done_again(tmp_path: Path) -> None:
    inputs = [write_corpus(tmp_path / f"{i}.jsonl", uneven_texts(i)) for i in range(2)]
    with pytest.raises(Killed):
        killed_after(inputs, tmp_path / "out", chunks=200)
    write_corpus(inputs[0], ["other", *uneven_texts(7)])
    for name in ("out", "fresh"):
        tokenize_files(inputs, tmp_path / name, load_tokenizer=byte_tokenizer, chunk_bytes=300)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_call_whose_dataset_is_complete_does_nothing(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["ab"])
    first = tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer)
    seen: list[TokenizingProgress] = []
    again = tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer, on_progress=seen.append)
    assert again == first
    assert seen == []
    with pytest.raises(DataError, match=r"out\.idx exists"):
        tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer, key="other")


def test_two_commands_for_one_dataset_are_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["ab"])
    making = PartialDataset(tmp_path / "out", np.dtype("<u2"))
    with making, pytest.raises(DataError, match="another process is making .*out"):
        tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer)
    tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer)


@pytest.mark.parametrize("workers", [1, 2])
def test_malformed_record_names_the_place_and_leaves_no_dataset(tmp_path: Path, workers: int) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["fine"] * 40)
    corpus.write_text(corpus.read_text() + '{"text": 3}\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 41 has a int under 'text'.*--malformed skip"):
        tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer, workers=workers, chunk_bytes=10)
    assert not any(Path(f"{tmp_path / 'out'}{suffix}").exists() for suffix in SUFFIXES)
    metadata = tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer, skip_malformed=True)
    assert metadata.documents == 41


def test_text_that_the_tokenizer_refuses_is_an_error_that_says_where(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["raise"])
    with pytest.raises(DataError, match=r"a\.jsonl bytes 0 to 18 failed: ArithmeticError: no such number"):
        tokenize_files([corpus], tmp_path / "out", load_tokenizer=RefusingTokenizer)


def test_killed_worker_is_an_error_that_says_where(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["fine"] * 40 + ["die"] + ["fine"] * 40)
    with pytest.raises(DataError, match=r"exit code -9 at .*a\.jsonl bytes .*fewer --workers"):
        tokenize_corpus(fragile(corpus), tmp_path / "out", load_tokenizer=byte_tokenizer, workers=2, chunk_bytes=17)
    assert not (tmp_path / "out.idx").exists()


def test_corpus_without_documents_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.jsonl", ["", ""])
    with pytest.raises(DataError, match=r"a\.jsonl hold no document with a token"):
        tokenize_files([corpus], tmp_path / "out", load_tokenizer=byte_tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_no_corpus_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no corpus files were named"):
        tokenize_files([], tmp_path / "out", load_tokenizer=byte_tokenizer)
