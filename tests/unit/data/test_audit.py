import json
from pathlib import Path

import numpy as np
import pytest

from megatron_poro.data.audit import audit_dataset
from megatron_poro.data.tokenizing import tokenize_files
from megatron_poro.tokenizer.bytes import byte_tokenizer
from tests.unit.data.datasets import write_dataset


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    inputs = []
    for name in ("a", "b"):
        inputs.append(tmp_path / f"{name}.jsonl")
        inputs[-1].write_text("".join(json.dumps({"text": f"{name} text {i}"}) + "\n" for i in range(20)))
    tokenize_files(inputs, tmp_path / "out", load_tokenizer=byte_tokenizer)
    return tmp_path / "out"


def test_whole_dataset_has_no_fault(prefix: Path) -> None:
    result = audit_dataset(prefix)
    assert result.faults == []
    assert (result.documents, result.checksums) == (40, True)
    assert result.max_token_id == 24 + ord("x")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_any_flipped_bit_is_found_and_its_file_named(prefix: Path, suffix: str) -> None:
    path = Path(f"{prefix}{suffix}")
    content = path.read_bytes()
    for position in np.random.default_rng(0).integers(len(content), size=60).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(damaged))
        faults = audit_dataset(prefix).faults
        assert faults, position
        assert all(str(prefix) in fault for fault in faults)
        assert any("byte" in fault or "version" in fault or "begins with" in fault for fault in faults), faults
    path.write_bytes(content)
    assert audit_dataset(prefix).faults == []


def test_source_file_of_damaged_tokens_is_named(prefix: Path) -> None:
    tokens = Path(f"{prefix}.bin")
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    fault = audit_dataset(prefix).faults[0]
    assert f"{tokens} bytes {len(content) // 2} to {len(content)}, the documents of " in fault
    assert "b.jsonl: SHA-256 is" in fault


def test_index_that_contradicts_nothing_but_is_another_is_found(prefix: Path) -> None:
    """The first token of document 1 becomes the last one of document 0."""
    index = Path(f"{prefix}.idx")
    content = bytearray(index.read_bytes())
    sizes, begins = np.frombuffer(content, "<i4", 40, 34), np.frombuffer(content, "<i8", 40, 34 + 4 * 40)
    sizes[:2] += (1, -1)
    begins[1] += 2
    index.write_bytes(content)
    (fault,) = audit_dataset(prefix).faults
    assert f"{index} bytes 0 to {len(content)}: SHA-256 is" in fault


def test_id_outside_the_vocabulary_is_named_with_its_offset(prefix: Path) -> None:
    tokens = Path(f"{prefix}.bin")
    content = tokens.read_bytes()
    tokens.write_bytes(content[:10] + b"\xff\x01" + content[12:])
    faults = audit_dataset(prefix).faults
    assert any(f"{tokens} byte 10: token id 511 is outside 0 to 279" in fault for fault in faults)


def test_short_bin_is_a_fault(prefix: Path) -> None:
    tokens = Path(f"{prefix}.bin")
    tokens.write_bytes(tokens.read_bytes()[:-2])
    assert any(str(tokens) in fault for fault in audit_dataset(prefix).faults)


@pytest.mark.parametrize("suffix", [".manifest.json", ".meta.json"])
def test_damaged_side_file_is_a_fault(prefix: Path, suffix: str) -> None:
    path = Path(f"{prefix}{suffix}")
    path.write_text(path.read_text().replace('"documents": 40', '"documents": 41'))
    assert any(path.name in fault for fault in audit_dataset(prefix).faults)


def test_foreign_dataset_is_audited_as_far_as_it_can_be(tmp_path: Path) -> None:
    write_dataset(tmp_path / "foreign", [[1, 2], [3]])
    result = audit_dataset(tmp_path / "foreign")
    assert result.faults == []
    assert "no manifest to take checksums from" in result.proven


def test_missing_dataset_is_one_fault(tmp_path: Path) -> None:
    (fault,) = audit_dataset(tmp_path / "none").faults
    assert "none.idx does not exist" in fault
