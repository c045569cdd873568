"""What a run has to publish: its proven milestones, each file with what the server must come to hold of it.

An export under its final name is complete, so a folder that is being written is never met. To plan, the sizes and
checksums of its report are believed; before anything is uploaded, every byte is read.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_poro.checkpoint.export_report import REPORT_NAME, export_problems, read_report
from megatron_poro.checkpoint.locating import EXPORTS_FOLDER
from megatron_poro.errors import CheckpointError
from megatron_poro.hub.repository import RemoteFile
from megatron_poro.units import parse_count

_SMALL_BYTES = 64 << 20
"""A larger file is kept as a large file by every Hub, and is never compared by git's name of it."""


@dataclass(frozen=True)
class LocalFile:
    """A file to publish.

    Attributes:
        size: bytes.
        sha256: of the content.
        source: where the content is: a path, or the bytes themselves.
    """

    size: int
    sha256: str
    source: Path | bytes

    @classmethod
    def of_bytes(cls, content: bytes) -> "LocalFile":
        """A file that is made here."""
        return cls(len(content), hashlib.sha256(content).hexdigest(), content)

    def is_held_as(self, remote: RemoteFile) -> bool:
        """Whether the server holds just this content.

        Raises:
            CheckpointError: if our file cannot be read.
        """
        if remote.size != self.size:
            return False
        if remote.sha256 is not None:
            return remote.sha256 == self.sha256
        return self.size <= _SMALL_BYTES and remote.blob_id == git_blob_id(self.read())

    def read(self) -> bytes:
        """The content.

        Raises:
            CheckpointError: if it cannot be read.
        """
        if isinstance(self.source, bytes):
            return self.source
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.source} cannot be read ({error.strerror}). Make the export again.") from error


@dataclass(frozen=True)
class LocalExport:
    """The export of a milestone.

    Attributes:
        label: of the milestone, and so name of the branch.
        folder: where it is.
        report: its ``export_report.json``.
        files: by path in the repository, the report included.
    """

    label: str
    folder: Path
    report: Mapping[str, Any]
    files: Mapping[str, LocalFile]

    @property
    def tokens(self) -> int:
        """Tokens consumed."""
        return int(self.report["checkpoint"]["consumed_tokens"])

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.report["checkpoint"]["step"])

    @property
    def is_proven(self) -> bool:
        """Whether it was compared with its checkpoint."""
        return self.report["parity"] is not None and bool(self.report["parity"]["met"])

    def require_intact(self) -> None:
        """Reads every byte.

        Raises:
            CheckpointError: if a file is not what was exported.
        """
        if problems := export_problems(self.folder):
            raise CheckpointError(
                f"export {self.folder} is damaged: {'; '.join(problems[:3])}. Remove it and export the milestone again."
            )


def git_blob_id(content: bytes) -> str:
    """Git's name of a content.

    >>> git_blob_id(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def local_exports(run: Path) -> list[LocalExport]:
    """The exported milestones of a run, oldest first; exports of other steps are passed over.

    Raises:
        CheckpointError: if a report is damaged.
    """
    folder = run / EXPORTS_FOLDER
    folders = [path for path in folder.iterdir() if (path / REPORT_NAME).is_file()] if folder.is_dir() else []
    found = [read_export(path) for path in folders if is_label(path.name)]
    return sorted((export for export in found if export is not None), key=lambda export: export.tokens)


def read_export(folder: Path) -> LocalExport | None:
    """One export; None if it is not of the milestone that its name says.

    Raises:
        CheckpointError: if its report is damaged.
    """
    report = read_report(folder)
    try:
        if report["checkpoint"]["milestone"] != folder.name:
            return None
        files = {
            name: LocalFile(entry["bytes"], entry["sha256"], folder / name) for name, entry in report["files"].items()
        }
        own = LocalFile.of_bytes((folder / REPORT_NAME).read_bytes())
        return LocalExport(folder.name, folder, report, {**files, REPORT_NAME: own})
    except (KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{folder / REPORT_NAME} is damaged: make the export again.") from error


def is_label(name: str) -> bool:
    """Whether a name is that of a milestone: ``100B``, ``0.5T``; ``100B.tmp`` and ``step_00000060`` are not."""
    try:
        parse_count(name)
    except ValueError:
        return False
    return True


def chosen(exports: Sequence[LocalExport], wanted: Sequence[str] | None, run: Path) -> list[LocalExport]:
    """The exports that were asked for.

    Args:
        exports: all there are.
        wanted: labels; None takes all.
        run: for messages.

    Raises:
        CheckpointError: if one that was asked for is not there.
    """
    if wanted is None:
        return list(exports)
    by_label = {export.label: export for export in exports}
    for label in wanted:
        if label not in by_label:
            there = f"it has {', '.join(by_label)}" if by_label else "it has none"
            raise CheckpointError(
                f"run {run} has no export of milestone {label}; {there}. Make it with `poro export {run} --milestones`."
            )
    return [export for export in exports if export.label in wanted]
