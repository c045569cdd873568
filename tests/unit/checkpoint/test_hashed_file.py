"""A file that is hashed while it is written: the same bytes, the same checksum, and a disk's refusal is heard."""

import hashlib
import os
from pathlib import Path

import pytest

from megatron_poro.checkpoint import hashed_file
from megatron_poro.checkpoint.hashed_file import HashedFile
from megatron_poro.checkpoint.manifest import describe


def test_what_is_written_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed_file, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(hashed_file, "FLUSH_BYTES", 3000)
    parts = [os.urandom(size) for size in (0, 1, 999, 1000, 1001, 12_345)]
    with HashedFile(tmp_path / "x") as file:
        for part in parts:
            buffer = bytearray(part)
            file.write(memoryview(buffer))
            buffer[:] = bytes(len(buffer))  # nothing refers to it any more
    content = b"".join(parts)
    assert (tmp_path / "x").read_bytes() == content
    assert file.entry == describe(tmp_path / "x")
    assert (file.size, file.entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_elements_of_other_sizes_count_in_bytes(tmp_path: Path) -> None:
    with HashedFile(tmp_path / "x") as file:
        file.write(memoryview(bytes(80)).cast("d"))
    assert file.entry == describe(tmp_path / "x")
    assert file.size == 80


def test_a_full_disk_is_heard_at_once() -> None:
    with pytest.raises(OSError, match="No space left on device"), HashedFile(Path("/dev/full")) as file:
        file.write(b"x")


@pytest.mark.parametrize("writes", [2, 1], ids=["at the next write", "at the end"])
def test_a_flush_that_fails_behind_our_back_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", refuse)
    monkeypatch.setattr(hashed_file, "FLUSH_BYTES", 1)

    def work() -> None:
        with HashedFile(tmp_path / "x") as file:
            for _ in range(writes):
                file.write(b"x")
                file._flusher.submit(int).result()  # one thread: what was asked before is done

    with pytest.raises(OSError, match="Input/output error"):
        work()


def test_an_error_in_the_block_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), HashedFile(tmp_path / "x"):
        1 / 0  # noqa: B018
