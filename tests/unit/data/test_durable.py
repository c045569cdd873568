import errno
import os
from pathlib import Path

import pytest

from megatron_poro.data.durable import DurableFile, durable_write
from megatron_poro.errors import DataError


def test_file_appears_only_when_published(tmp_path: Path) -> None:
    file = DurableFile(tmp_path / "new" / "a.bin")
    file.write(b"abc")
    assert not file.path.exists()
    file.finish()
    assert not file.path.exists()
    file.publish()
    assert [entry.name for entry in file.path.parent.iterdir()] == ["a.bin"]
    assert file.path.read_bytes() == b"abc"


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail_half_way() -> None:
        with durable_write(tmp_path / "a") as file:
            file.write(b"new")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail_half_way()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"a": b"old"}


def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"cannot write .*a: No space left on device"), durable_write(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file/a"):
        DurableFile(tmp_path / "file" / "a")


def test_file_and_name_are_on_the_disk_when_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fsync

    def noting_sync(descriptor: int) -> None:
        sync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noting_sync)
    file = DurableFile(tmp_path / "a")
    file.write(b"abc")
    file.finish()
    assert synced == [next(tmp_path.iterdir()).stat().st_ino], "the content comes before the name"
    file.publish()
    assert synced[1:] == [tmp_path.stat().st_ino]
