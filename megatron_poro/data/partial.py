"""A dataset in the making that survives its process: the folder ``PREFIX.partial``.

Tokens and sizes are only ever appended. Now and then both are flushed to the disk and a line is added to the journal
that says how far they and the corpus have come: whatever lies behind the last whole line is cut off when the work is
taken up again. To publish, the remaining files are finished in the folder first, the .idx as the last: from then on,
publishing is nothing but renames and is completed by whoever comes next. Nothing is copied.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.durable import durable_write, refusals_as_data_errors
from megatron_poro.data.indexed_format import IndexPart, bin_path, idx_path, write_index
from megatron_poro.data.manifest import Manifest, manifest_path
from megatron_poro.data.metadata import DatasetMetadata, metadata_path
from megatron_poro.errors import DataError

_INDEX_PART = 1 << 20


def partial_folder(prefix: Path) -> Path:
    """Where the dataset ``prefix`` grows."""
    return Path(f"{prefix}.partial")


class PartialDataset:
    """The dataset ``prefix`` in the making; a context manager that holds the folder for this process alone.

    Leaving the block keeps the folder if anything was recorded in its journal and removes it otherwise.

    Attributes:
        folder: ``PREFIX.partial``.
        documents: documents appended.
        tokens_path: where the tokens are.

    Raises:
        DataError: if another process is making the same dataset, or the disk refuses.
    """

    def __init__(self, prefix: Path, stored: np.dtype[Any]) -> None:
        self.prefix = prefix
        self.folder = partial_folder(prefix)
        self.tokens_path, self._sizes_path = self.folder / "tokens", self.folder / "sizes"
        self._journal_path, self._index_path = self.folder / "journal.jsonl", self.folder / "idx"
        self.documents = self._token_bytes = 0
        self._stored = stored
        with refusals_as_data_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "lock", "ab")  # noqa: SIM115 (closed by __exit__)
            self._take_lock()
        self._recorded = self._journal_path.exists()
        self._files: list[BinaryIO] = []

    def journal(self) -> list[dict[str, Any]]:
        """Whole lines of the journal that the files still bear out, in order."""
        lines = self._journal_path.read_bytes().split(b"\n")[:-1] if self._journal_path.exists() else []
        entries: list[dict[str, Any]] = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # a torn write; what follows it is not to be trusted either
                break
            if not self._is_borne_out(entry):
                break
            entries.append(entry)
        return entries

    def take_up(self, entries: list[dict[str, Any]], header: Mapping[str, Any]) -> None:
        """Goes back to the last of ``entries`` of the journal, or to nothing, and opens the files for appending."""
        self.documents = entries[-1]["documents"] if entries else 0
        self._token_bytes = entries[-1]["token_bytes"] if entries else 0
        self._recorded = bool(entries)
        with refusals_as_data_errors(self.folder):
            with durable_write(self._journal_path) as file:
                for line in (header, *entries) if entries else (header,):
                    file.write(json.dumps(line).encode() + b"\n")
            for path, size in ((self.tokens_path, self._token_bytes), (self._sizes_path, 4 * self.documents)):
                with open(path, "ab") as file_to_cut:
                    file_to_cut.truncate(size)
            paths = (self.tokens_path, self._sizes_path, self._journal_path)
            self._files = [open(path, "ab") for path in paths]  # noqa: SIM115 (closed by _close)

    def append(self, tokens: bytes | memoryview, sizes: NDArray[np.int32]) -> None:
        """Appends documents: their tokens as they are stored, and the length of each."""
        with refusals_as_data_errors(self.tokens_path):
            self._files[0].write(tokens)
            self._files[1].write(sizes.astype("<i4").tobytes())
        self.documents += len(sizes)
        self._token_bytes += len(tokens)

    def record(self, entry: Mapping[str, Any]) -> None:
        """Makes everything appended so far safe, and notes ``entry`` with it."""
        line = json.dumps({**entry, "documents": self.documents, "token_bytes": self._token_bytes})
        with refusals_as_data_errors(self._journal_path):
            for file in self._files[:2]:
                file.flush()
                os.fsync(file.fileno())
            self._files[2].write(line.encode() + b"\n")
            self._files[2].flush()
            os.fsync(self._files[2].fileno())
        self._recorded = True

    def write_idx(self, parts: Sequence[IndexPart] | None = None) -> Path:
        """Writes the .idx of what was appended, in bounded memory, and returns where, for its checksum.

        Args:
            parts: what was appended, where its documents are not one sequence each.
        """
        with refusals_as_data_errors(self.folder):
            for file in self._files:
                file.flush()
        path = self.folder / "idx.unchecked"
        with durable_write(path) as idx:
            write_index(idx, self._stored, self._parts() if parts is None else parts)
        return path

    def publish(self, *, metadata: DatasetMetadata | None, manifest: Manifest | None) -> None:
        """Gives the dataset its name, with these side files, and removes the folder."""
        sides = {"meta.json": (metadata, metadata_path), "manifest.json": (manifest, manifest_path)}
        for name, (content, path_of) in sides.items():
            if content is None:  # what the dataset that is replaced had must not be taken for this one's
                with refusals_as_data_errors(self.prefix):
                    idx_path(self.prefix).unlink(missing_ok=True)
                    path_of(self.prefix).unlink(missing_ok=True)
                continue
            with durable_write(self.folder / name) as file:
                file.write(content.to_json().encode())
        with refusals_as_data_errors(self.tokens_path):
            for opened in self._files[:2]:
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(self.folder / "idx.unchecked", self._index_path)
        self.complete_publishing()
        self.discard()

    def complete_publishing(self) -> bool:
        """Does the renames that are left, in an order in which no reader ever sees a wrong pair; else does nothing.

        Returns:
            Whether a dataset was published.
        """
        if not self._index_path.exists():
            return False
        targets = {
            "tokens": bin_path(self.prefix),
            "meta.json": metadata_path(self.prefix),
            "manifest.json": manifest_path(self.prefix),
            "idx": idx_path(self.prefix),
        }
        with refusals_as_data_errors(self.prefix):
            idx_path(self.prefix).unlink(missing_ok=True)  # from here on there is no dataset until the new one is whole
            for name, path in targets.items():
                if (self.folder / name).exists():
                    os.replace(self.folder / name, path)
            folder = os.open(self.prefix.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return True

    def discard(self) -> None:
        """Removes the folder."""
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "PartialDataset":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if not self._recorded:
            self.discard()
        self._lock.close()

    def _close(self) -> None:
        for file in self._files:
            try:
                file.close()
            except OSError:  # a full disk refuses the last flush; the journal does not count on it
                continue
        self._files = []

    def _parts(self) -> list[IndexPart]:
        """Views of the sizes on disk; all parts share one array of document ends."""
        sizes = np.memmap(self._sizes_path, "<i4", "r") if self.documents else np.empty(0, "<i4")
        ends = np.arange(1, min(_INDEX_PART, len(sizes)) + 1, dtype=np.int64)
        starts = range(0, len(sizes), _INDEX_PART)
        views = (sizes[start : start + _INDEX_PART] for start in starts)
        return [IndexPart(view, ends[: len(view)]) for view in views]

    def _is_borne_out(self, entry: dict[str, Any]) -> bool:
        if "documents" not in entry:
            return True
        try:
            sizes, tokens = self._sizes_path.stat().st_size, self.tokens_path.stat().st_size
        except OSError:
            return False
        return bool(sizes >= 4 * entry["documents"] and tokens >= entry["token_bytes"])

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):  # a Lustre mounted without flock
                return
            self._lock.close()
            raise DataError(f"another process is making {self.prefix}: {self.folder} is in use.") from error
