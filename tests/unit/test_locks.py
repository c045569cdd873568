"""One process at a time holds a lock file; whoever held it before leaves nothing behind."""

import errno
import fcntl
from pathlib import Path

import pytest

from megatron_poro.errors import DataError
from megatron_poro.locks import hold

IN_USE = DataError("somebody else is at it.")


def test_a_lock_is_held_by_one_and_then_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with hold(path, IN_USE):
            assert path.exists()
            with pytest.raises(DataError, match="somebody else"), hold(path, IN_USE):
                pass
            assert path.exists()  # the one that was refused has not removed it
        assert not path.exists()


def test_an_error_lets_go_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "lock", IN_USE):
        1 / 0  # noqa: B018
    with hold(tmp_path / "lock", IN_USE):
        pass


def test_a_file_that_is_removed_between_opening_and_locking_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removed it: who locks the nameless file would not keep out the next one, who makes a new file."""
    path, lock, calls = tmp_path / "lock", fcntl.flock, []

    def late(file: int, operation: int) -> None:
        if not calls:
            path.unlink()
        calls.append(operation)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with hold(path, IN_USE):
        assert len(calls) == 2
        assert path.exists()


def test_a_disk_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path / "lock", IN_USE):
        pass
    assert "cannot be locked (No locks available); take care that only one process works here" in caplog.text
