"""Looking into a foreign checkpoint runs nothing of it and reads nothing outside it."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.index import INDEX_NAME
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.errors import CheckpointError
from tests.unit.checkpoint.fake_engine import FakeEngine, run_state


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(CheckpointStore(tmp_path / "checkpoints"), FakeEngine(), run_state(5))


class Intruder:
    """A pickle that makes a file when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def put(folder: Path, name: str, content: bytes) -> None:
    """Replaces a file and makes the manifest agree with it, as whoever gives away a bad checkpoint would."""
    (folder / name).write_bytes(content)
    entries = manifest.read(folder) | {name: manifest.describe(folder / name)}
    (folder / manifest.MANIFEST_NAME).write_bytes(manifest.encode(entries))


def test_a_program_in_the_index_is_named_and_not_run(saved: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    put(saved, INDEX_NAME, pickle.dumps(Intruder(trace)))
    assert manifest.problems(saved) == []
    with pytest.raises(CheckpointError, match=r"asks for pathlib\.\w+.*Nothing of it has been run"):
        _ = CheckpointReader(saved).index
    assert not trace.exists()


def test_an_index_of_a_python_that_names_members_of_enums_by_getattr_is_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = CheckpointReader(saved).index
    with monkeypatch.context() as patch:
        patch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", lambda self, _: (getattr, (type(self), self.name)))
        content = pickle.dumps(index)
    assert b"getattr" in content
    put(saved, INDEX_NAME, content)
    assert CheckpointReader(saved).index == index


class Lookup:
    """A pickle that looks something up by ``getattr``."""

    def __init__(self, kind: type, name: str) -> None:
        self.looked_up = kind, name

    def __reduce__(self) -> Any:
        return getattr, self.looked_up


@pytest.mark.parametrize("lookup", [Lookup(Metadata, "__init__"), Lookup(_MEM_FORMAT_ENCODING, "__init__")])
def test_getattr_in_an_index_looks_up_nothing_else(saved: Path, lookup: Lookup) -> None:
    put(saved, INDEX_NAME, pickle.dumps(lookup))
    with pytest.raises(CheckpointError, match=r"asks for __init__ of .*Nothing of it has been run"):
        _ = CheckpointReader(saved).index


@pytest.mark.parametrize("content", [b"", b"\x80\x05garbage", pickle.dumps({"no": "index"})])
def test_an_index_that_is_none_is_a_named_error(saved: Path, content: bytes) -> None:
    put(saved, INDEX_NAME, content)
    with pytest.raises(CheckpointError, match=r"\.metadata is damaged"):
        _ = CheckpointReader(saved).index


def test_an_index_that_leads_out_of_the_checkpoint_is_refused(saved: Path) -> None:
    index = CheckpointReader(saved).index
    for key, stored in index.storage_data.items():
        index.storage_data[key] = type(stored)("../../secret", stored.offset, stored.length)
    put(saved, INDEX_NAME, pickle.dumps(index))
    with pytest.raises(CheckpointError, match=r"names \.\./\.\./secret, which is no file of this checkpoint"):
        _ = CheckpointReader(saved).index


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_a_manifest_that_leads_out_of_the_checkpoint_is_refused(saved: Path, name: str) -> None:
    (saved.parent / "secret").write_bytes(b"x")
    entries = manifest.read(saved) | {name: manifest.describe(saved.parent / "secret")}
    (saved / manifest.MANIFEST_NAME).write_bytes(manifest.encode(entries))
    (problem,) = manifest.problems(saved)
    assert f"names {name}, which leads out of the checkpoint" in problem


def test_a_program_in_a_chunk_is_not_run(saved: Path, tmp_path: Path) -> None:
    trace, chunk = tmp_path / "trace", tmp_path / "chunk"
    torch.save(Intruder(trace), chunk)
    index = CheckpointReader(saved).index
    for key, stored in index.storage_data.items():
        index.storage_data[key] = type(stored)(stored.relative_path, 0, chunk.stat().st_size)
    put(saved, INDEX_NAME, pickle.dumps(index))
    put(saved, "__0_0.distcp", chunk.read_bytes())
    with pytest.raises((CheckpointException, CheckpointError)):
        CheckpointReader(saved).tensor("final_norm.weight")
    assert not trace.exists()
