"""Files that are whole or not there: written under a temporary name, flushed to the disk, then renamed.

Everything the data room writes goes through here, so that a killed or failed command leaves no half-written dataset
and several processes that write the same file at the same time do no harm.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from megatron_poro.errors import DataError


class DurableFile:
    """A binary file in the making; ``finish`` makes its content safe, ``publish`` gives it its name.

    Two steps, so that a set of files can be finished before the first of them appears.

    Raises:
        DataError: from any method, if the disk refuses (full, read-only, no permission).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        with refusals_as_data_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: BinaryIO = open(self._temporary, "xb")  # noqa: SIM115 (closed by finish or discard)

    def write(self, data: bytes | memoryview) -> None:
        """Appends."""
        with refusals_as_data_errors(self.path):
            self.file.write(data)

    def finish(self) -> None:
        """Flushes everything to the disk and closes; the file still has its temporary name."""
        with refusals_as_data_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()

    def publish(self) -> None:
        """Gives the finished file its name, replacing what had it, and makes the name itself durable."""
        with refusals_as_data_errors(self.path):
            os.replace(self._temporary, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        """Removes the temporary file; harmless after ``publish``."""
        with suppress(OSError):  # a full disk refuses the last flush; the content is thrown away in any case
            self.file.close()
        self._temporary.unlink(missing_ok=True)


@contextmanager
def durable_write(path: Path) -> Iterator[DurableFile]:
    """One file: published when the block ends, discarded when it raises."""
    file = DurableFile(path)
    try:
        yield file
        file.finish()
        file.publish()
    finally:
        file.discard()


@contextmanager
def refusals_as_data_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write ``path`` into a DataError that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}. Nothing was left half-written.") from error
