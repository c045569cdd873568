"""A model repository as the rest of the room sees it: branches, files with their checksums, commits.

Implemented by :class:`~megatron_poro.hub.remote.HubRemote` and, in memory, by the tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from megatron_poro.errors import HubError

MAIN = "main"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the server describes it.

    Attributes:
        size: bytes.
        sha256: of the content, where it is kept as a large file; else None.
        blob_id: git's name of what is in the repository: the content, or the pointer to a large file.
    """

    size: int
    sha256: str | None
    blob_id: str


@dataclass(frozen=True)
class Changes:
    """What one commit does to a branch.

    Attributes:
        adds: content by path in the repository, as a file on disk or as bytes.
        copies: the commit from which a path is taken over, without moving its bytes.
        deletes: paths that go.
    """

    adds: Mapping[str, Path | bytes] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    deletes: frozenset[str] = frozenset()


class BranchMovedError(HubError):
    """A commit was refused because the branch is no longer where it was."""


class Remote(Protocol):
    """One model repository. Every method may raise ``HubError`` and ``HubUnavailableError``."""

    name: str
    """``owner/name``."""

    def branches(self) -> dict[str, str] | None:
        """Commit of each branch; None if there is no such repository."""
        ...

    def create(self, *, private: bool) -> None:
        """Makes the repository; nothing happens if it exists."""
        ...

    def root_commit(self) -> str:
        """The first commit of ``main``."""
        ...

    def create_branch(self, branch: str, *, commit: str) -> None:
        """Makes a branch that points to a commit; nothing happens if the branch exists."""
        ...

    def delete_branch(self, branch: str) -> None:
        """Removes a branch; nothing happens if it does not exist."""
        ...

    def files(self, revision: str) -> dict[str, RemoteFile]:
        """Every file of a branch or commit, by path."""
        ...

    def read(self, path: str, *, revision: str) -> bytes:
        """The content of a small file."""
        ...

    def commit(self, branch: str, changes: Changes, *, message: str, parent: str) -> str:
        """Makes one commit with all of the changes and returns its id.

        Raises:
            BranchMovedError: if the branch does not point to ``parent``: somebody else has committed, or an earlier
                try of ours has, whose answer was lost.
        """
        ...
