"""A file that is hashed and made durable while it is written, so that neither costs a second pass over it.

Hashing, writing and the disk work at the same time. Without the flushes in between a kernel may keep gigabytes in
memory and let whoever calls ``fsync`` at the end wait for all of them.
"""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from megatron_poro.checkpoint.manifest import FileEntry

BLOCK_BYTES = 8 << 20
"""Given to the system in one call."""

FLUSH_BYTES = 128 << 20
"""Written between two flushes to the disk."""


class HashedFile:
    """A file in the making; durable and described when the ``with`` block ends without an error.

    Attributes:
        size: bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, replacing one that is there.

        Raises:
            OSError: if the disk refuses.
        """
        self.size = 0
        self._file = path.open("wb", buffering=0)
        self._digest = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1, "hash")
        self._flusher = ThreadPoolExecutor(1, "flush")
        self._flush: Future[None] | None = None
        self._flushed = 0

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._flusher.shutdown()
            self._hasher.shutdown()
            if error is None:
                self._raise_if_flush_failed()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    @property
    def entry(self) -> FileEntry:
        """Size and SHA-256 of what was written."""
        return FileEntry(self.size, self._digest.hexdigest())

    def write(self, content: bytes | memoryview) -> None:
        """Appends; nothing refers to ``content`` any more when this returns.

        Raises:
            OSError: if the disk refuses this content or some before it.
        """
        view = memoryview(content).cast("B")
        hashing = self._hasher.submit(self._digest.update, view)
        try:
            for begin in range(0, len(view), BLOCK_BYTES):
                self._append(view[begin : begin + BLOCK_BYTES])
        finally:
            hashing.result()

    def _append(self, block: memoryview) -> None:
        written = 0
        while written < len(block):  # an unbuffered file may take less than it is given
            written += self._file.write(block[written:])
        self.size += written
        if self.size - self._flushed >= FLUSH_BYTES and (self._flush is None or self._flush.done()):
            self._raise_if_flush_failed()
            self._flushed = self.size
            self._flush = self._flusher.submit(os.fdatasync, self._file.fileno())

    def _raise_if_flush_failed(self) -> None:
        """The kernel tells of a block that the disk refused once: to the flush that met it."""
        if self._flush is not None:
            self._flush.result()
