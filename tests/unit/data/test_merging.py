import json
from pathlib import Path

import pytest

from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.indexed_writer import IndexedWriter
from megatron_poro.data.merging import merge_datasets
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.errors import DataError
from tests.unit.data.datasets import random_documents, write_dataset


def write_with_side_file(prefix: Path, documents: list[list[int]], *, tokenizer: str = "abc") -> None:
    with IndexedWriter(prefix, vocab_size=100) as writer:
        for document in documents:
            writer.append(document)
        writer.commit(
            DatasetMetadata(
                tokenizer=tokenizer,
                vocab_size=100,
                documents=writer.num_documents,
                tokens=writer.num_tokens,
                max_token_id=writer.max_token_id,
                empty_documents=1,
                inputs=(f"{prefix.name}.jsonl",),
            )
        )


def test_merged_shards_are_the_bytes_of_one_dataset(tmp_path: Path) -> None:
    documents = random_documents(0, 30)
    write_dataset(tmp_path / "whole", documents)
    for name, part in (("a", documents[:7]), ("b", []), ("c", documents[7:])):
        write_dataset(tmp_path / name, part)
    merged = merge_datasets([tmp_path / "a", tmp_path / "b", tmp_path / "c"], tmp_path / "merged")
    assert len(merged) == 30
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"merged{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_side_files_add_up(tmp_path: Path) -> None:
    write_with_side_file(tmp_path / "a", [[1, 2], [3]])
    write_with_side_file(tmp_path / "b", [[9]])
    assert merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "m").metadata() == DatasetMetadata(
        tokenizer="abc",
        vocab_size=100,
        documents=3,
        tokens=4,
        max_token_id=9,
        empty_documents=2,
        inputs=("a.jsonl", "b.jsonl"),
    )


def test_one_shard_without_side_file_leaves_the_whole_without(tmp_path: Path) -> None:
    write_with_side_file(tmp_path / "a", [[1]])
    write_dataset(tmp_path / "b", [[2]])
    assert merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "m").metadata() is None


def test_shards_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    write_with_side_file(tmp_path / "a", [[1]])
    write_with_side_file(tmp_path / "b", [[1]], tokenizer="def")
    with pytest.raises(DataError, match=r"a was made with tokenizer abc, .*b with def"):
        merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    assert not (tmp_path / "m.idx").exists()


def test_shards_of_two_token_types_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1]])
    write_dataset(tmp_path / "b", [[1]], vocab_size=128000)
    with pytest.raises(DataError, match=r"a stores tokens as uint16, .*b as int32"):
        merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "m")


def test_output_must_not_be_a_shard(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1]])
    with pytest.raises(DataError, match="also one of the shards"):
        merge_datasets([tmp_path / "a"], tmp_path / "x" / ".." / "a", overwrite=True)
    assert IndexedDataset(tmp_path / "a").document(0).tolist() == [1]


def test_existing_output_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1]])
    write_dataset(tmp_path / "m", [[2]])
    with pytest.raises(DataError, match=r"m\.idx exists"):
        merge_datasets([tmp_path / "a"], tmp_path / "m")
    assert merge_datasets([tmp_path / "a"], tmp_path / "m", overwrite=True).document(0).tolist() == [1]


def test_damaged_shard_leaves_no_output(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1, 2], [3]])
    content = bytearray((tmp_path / "a.idx").read_bytes())
    content[34] = 1
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(DataError, match="document 0 .* has 1 tokens"):
        merge_datasets([tmp_path / "a"], tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


def test_nothing_to_merge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards were named"):
        merge_datasets([], tmp_path / "m")


def test_side_file_is_plain_json(tmp_path: Path) -> None:
    write_with_side_file(tmp_path / "a", [[1]])
    assert json.loads((tmp_path / "a.meta.json").read_text())["inputs"] == ["a.jsonl"]
