"""A repository in memory with commits that are never changed, and a moment at which its user dies."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from megatron_poro.hub.exports import git_blob_id
from megatron_poro.hub.repository import BranchMovedError, Changes, RemoteFile

Answer = TypeVar("Answer")
Tree = Mapping[str, bytes]
ROOT_TREE: Tree = {".gitattributes": b"*.safetensors filter=lfs\n"}


class Died(BaseException):
    """The user of the repository was killed."""


class MemoryRemote:
    """Implements ``Remote``.

    Attributes:
        commits: tree of each commit.
        heads: commit of each branch.
        main_history: every tree that ``main`` ever had.
        writes: calls that changed something.
        calls: all calls.
    """

    name = "poro/tiny"

    def __init__(self) -> None:
        self.exists = False
        self.commits: dict[str, Tree] = {}
        self.heads: dict[str, str] = {}
        self.main_history: list[Tree] = []
        self.calls = 0
        self.writes = 0
        self.before: Callable[[int], None] = lambda number: None
        self.after: Callable[[int], None] = lambda number: None

    # --- what the tests look at ---

    def trees(self) -> dict[str, Tree]:
        """What each branch holds."""
        return {branch: self.commits[commit] for branch, commit in self.heads.items()}

    def put(self, branch: str, tree: Tree) -> None:
        """Somebody else's commit."""
        self._point(branch, self._store(tree))

    # --- Remote ---

    def branches(self) -> dict[str, str] | None:
        return self._call(lambda: dict(self.heads) if self.exists else None)

    def create(self, *, private: bool) -> None:
        def make() -> None:
            self.writes += 1
            self.exists = True
            self._point("main", self._store(ROOT_TREE))

        self._call(lambda: None if self.exists else make())

    def root_commit(self) -> str:
        return self._call(lambda: next(iter(self.commits)))

    def create_branch(self, branch: str, *, commit: str) -> None:
        def make() -> None:
            assert commit in self.commits
            self.writes += 1
            self._point(branch, commit)

        self._call(lambda: None if branch in self.heads else make())

    def delete_branch(self, branch: str) -> None:
        def remove() -> None:
            self.writes += 1
            self.heads.pop(branch, None)

        self._call(remove)

    def files(self, revision: str) -> dict[str, RemoteFile]:
        return self._call(lambda: {path: described(path, data) for path, data in self._tree(revision).items()})

    def read(self, path: str, *, revision: str) -> bytes:
        return self._call(lambda: self._tree(revision)[path])

    def commit(self, branch: str, changes: Changes, *, message: str, parent: str) -> str:
        def make() -> str:
            if self.heads[branch] != parent:
                raise BranchMovedError(f"{branch} is not at {parent}")
            self.writes += 1
            tree = dict(self._tree(parent))
            for path in changes.deletes:
                del tree[path]
            tree |= {path: self._tree(source)[path] for path, source in changes.copies.items()}
            tree |= {path: data.read_bytes() if isinstance(data, Path) else data for path, data in changes.adds.items()}
            commit = self._store(tree)
            self._point(branch, commit)
            return commit

        return self._call(make)

    def _call(self, carry_out: Callable[[], Answer]) -> Answer:
        self.calls += 1
        number = self.calls
        self.before(number)
        answer = carry_out()
        self.after(number)
        return answer

    def _tree(self, revision: str) -> Tree:
        return self.commits[self.heads.get(revision, revision)]

    def _store(self, tree: Tree) -> str:
        commit = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[commit] = dict(tree)
        return commit

    def _point(self, branch: str, commit: str) -> None:
        self.heads[branch] = commit
        if branch == "main":
            self.main_history.append(self.commits[commit])


def described(path: str, data: bytes) -> RemoteFile:
    """A file as the server describes it; tensors are large files."""
    if not path.endswith(".safetensors"):
        return RemoteFile(len(data), None, git_blob_id(data))
    sha256 = hashlib.sha256(data).hexdigest()
    return RemoteFile(len(data), sha256, git_blob_id(f"pointer to {sha256}".encode()))
