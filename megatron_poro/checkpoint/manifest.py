"""The commit record of a checkpoint: size and SHA-256 of each of its files.

A folder is a checkpoint if and only if it holds a ``manifest.json`` that agrees with every file it lists. The record
also covers itself, so that a damaged record is told from a damaged file. Nothing here needs torch.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from megatron_poro.errors import CheckpointError

MANIFEST_NAME = "manifest.json"
FORMAT = 1
_BUFFER_BYTES = 4 << 20
_THREADS = 8


@dataclass(frozen=True)
class FileEntry:
    """What a file must be: its size in bytes and the SHA-256 of its content, in hex."""

    size: int
    sha256: str


def describe(path: Path) -> FileEntry:
    """Reads a file and says what it is.

    SHA-256 because ``sha256sum`` checks it without this package, and current processors hash as fast as disks read.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BUFFER_BYTES):
            digest.update(block)
            size += len(block)
    return FileEntry(size, digest.hexdigest())


def encode(entries: Mapping[str, FileEntry]) -> bytes:
    """The one text that records these files: sorted, so that equal folders have equal manifests."""
    files = {name: {"bytes": entry.size, "sha256": entry.sha256} for name, entry in sorted(entries.items())}
    return _dump({"format": FORMAT, "files": files, "files_sha256": hashlib.sha256(_dump(files)).hexdigest()})


def read(folder: Path) -> dict[str, FileEntry]:
    """The files that a checkpoint folder must hold.

    Raises:
        CheckpointError: if there is no manifest, or it is not byte for byte what :func:`encode` writes.
    """
    path = folder / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{MANIFEST_NAME} is missing: {folder} was never completed.") from None
    except OSError as error:
        raise CheckpointError(f"{MANIFEST_NAME} of {folder} cannot be read: {error.strerror}.") from None
    try:
        record = json.loads(content)
        written_by = record["format"]
        entries = {name: FileEntry(entry["bytes"], entry["sha256"]) for name, entry in record["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{MANIFEST_NAME} of {folder} is damaged: it does not parse.") from None
    if written_by != FORMAT:
        raise CheckpointError(f"{MANIFEST_NAME} of {folder} has format {written_by!r}, this release reads {FORMAT}.")
    if encode(entries) != content:
        raise CheckpointError(f"{MANIFEST_NAME} of {folder} is damaged: it does not agree with its own checksum.")
    for name in entries:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CheckpointError(f"{MANIFEST_NAME} of {folder} names {name}, which leads out of the checkpoint.")
    return entries


def problems(
    folder: Path, *, rank: int = 0, size: int = 1, checksums: bool = True, only: Collection[str] | None = None
) -> list[str]:
    """Everything that keeps a folder from being a valid checkpoint, one phrase each; empty means valid.

    Args:
        folder: a step folder.
        rank, size: read only every ``size``-th file, from the ``rank``-th on, so that processes can share the work.
        checksums: also compare contents; without it only presence and sizes.
        only: files to look at; None for all.
    """
    try:
        entries = read(folder)
    except CheckpointError as error:
        return [str(error)]
    names = [name for name in sorted(entries)[rank::size] if only is None or name in only]
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:  # reading and hashing both leave Python's lock
        found = pool.map(lambda name: _problem(folder / name, name, entries[name], checksums), names)
        return [problem for problem in found if problem is not None]


def _problem(path: Path, name: str, expected: FileEntry, checksums: bool) -> str | None:
    """What is wrong with one file, or None."""
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"{name} has {size} bytes, its manifest says {expected.size}"
        if checksums and describe(path).sha256 != expected.sha256:
            return f"{name} does not have the checksum of its manifest (sha256 {expected.sha256[:12]}...)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


def relative_files(folder: Path) -> list[str]:
    """Every file below a folder but the manifest, as relative paths, sorted."""
    files: Iterable[Path] = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in files if (name := path.relative_to(folder).as_posix()) != MANIFEST_NAME)


def _dump(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
