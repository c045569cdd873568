"""One model as a bare git repository with its large files: revisions, listings, commits, and the log of each branch.

Only plumbing commands of git are used, with no configuration but the repository's own.
"""

import datetime
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.hub.exchange import Refused
from tests.support.hub.large_files import LONGEST_POINTER, ObjectStore, Pointer, read_pointer
from tests.support.hub.whole_files import write_whole

LARGE_PATTERNS = """
    *.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot
    *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm
    *.xz *.zip *.zst *tfevents*
"""
"""What a new repository of the Hub keeps as large files."""
GIT_ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE_PATTERNS.split())
ABSENT = "0" * 40
FULL_SHA = re.compile(r"[0-9a-f]{40}")
BAD_BRANCH = re.compile(r"[\x00-\x20~^:?*\[\\]|\.\.|@\{|^/|/$|//|\.lock$|^-|^$|^[0-9a-f]{40}$")


class TreeEntry(NamedTuple):
    """A file or a folder at some commit."""

    path: str
    blob: str
    size: int
    """Of the file itself, also where git keeps a pointer to it."""
    pointer: Pointer | None = None
    is_folder: bool = False


class CommitRecord(NamedTuple):
    """One line of a branch's history."""

    sha: str
    author: str
    date: str
    title: str
    message: str


class Change(NamedTuple):
    """A file as it is after a commit; gone if its content is None."""

    path: str
    content: bytes | None


class Repository:
    """Made by ``create``; one object per repository and process, since it holds the lock of its writers."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.objects = ObjectStore(folder / "lfs" / "objects")
        self.lock = threading.RLock()
        # what git has under a name never changes, so it is asked once: readers read all of a branch many times
        self._listings: dict[str, dict[str, TreeEntry]] = {}
        self._blobs: dict[str, bytes] = {}
        self._pointers: dict[str, Pointer | None] = {}

    # --- the repository itself ---

    @property
    def exists(self) -> bool:
        return self._settings.exists()

    @property
    def private(self) -> bool:
        return bool(json.loads(self._settings.read_text())["private"])

    @private.setter
    def private(self, value: bool) -> None:
        write_whole(self._settings, json.dumps({"private": value}))

    @property
    def identity(self) -> str:
        return uuid.uuid5(uuid.NAMESPACE_URL, self.name).hex[:24]

    def create(self, *, private: bool) -> None:
        self.folder.mkdir(parents=True)
        self.git("init", "-q", "--bare", "-b", "main")
        for key, value in (
            ("core.logAllRefUpdates", "always"),
            ("http.receivepack", "true"),
            ("uploadpack.allowAnySHA1InWant", "true"),
        ):
            self.git("config", key, value)
        self.commit("refs/heads/main", None, [Change(".gitattributes", GIT_ATTRIBUTES.encode())], "initial commit")
        self.private = private

    def remove(self) -> None:
        with self.lock:
            shutil.rmtree(self.folder)
            self._listings.clear()

    # --- reading ---

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag, a full or an abbreviated sha names.

        Raises:
            Refused: 404, if there is none.
        """
        if revision in self._listings:  # a commit that was asked for before
            return revision
        names = [f"refs/heads/{revision}", f"refs/tags/{revision}"]
        if revision.startswith("refs/") or FULL_SHA.fullmatch(revision):
            names = [revision]
        elif re.fullmatch(r"[0-9a-f]{7,39}", revision):
            names.append(revision)
        for name in names:
            if sha := self.git("rev-parse", "-q", "--verify", name + "^{commit}", check=False).decode().strip():
                return sha
        raise Refused(404, f"Invalid rev id: {revision}", code="RevisionNotFound")

    def references(self) -> dict[str, str]:
        """Full names of branches and tags, and the commits they stand for."""
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)").decode().splitlines()
        return {fields[0]: fields[-1] for fields in map(str.split, lines)}

    def branches(self) -> dict[str, str]:
        """Branches and their commits."""
        prefix = "refs/heads/"
        return {name[len(prefix) :]: sha for name, sha in self.references().items() if name.startswith(prefix)}

    def every_value(self, branch: str) -> list[str]:
        """All commits that the branch ever stood for, oldest first, those that were overwritten too."""
        log = self.folder / "logs" / "refs" / "heads" / branch
        return [line.split()[1] for line in log.read_text().splitlines()]

    def files(self, commit: str) -> dict[str, TreeEntry]:
        """All files of a commit by path."""
        return {path: entry for path, entry in self._listing(commit).items() if not entry.is_folder}

    def entries(self, commit: str, path: str = "", *, recursive: bool = False) -> list[TreeEntry]:
        """What lies below ``path``.

        Raises:
            Refused: 404, if there is no such folder.
        """
        below = path.rstrip("/") + "/" if path else ""
        entries = [
            entry
            for entry in self._listing(commit).values()
            if entry.path.startswith(below) and (recursive or "/" not in entry.path[len(below) :])
        ]
        if path and not entries:
            raise Refused(404, f'{path} does not exist on "{commit}"', code="EntryNotFound")
        return entries

    def entry(self, commit: str, path: str) -> TreeEntry | None:
        """The file or folder of this path, if there is one."""
        return self._listing(commit).get(path.rstrip("/"))

    def blob(self, oid: str) -> bytes:
        if oid not in self._blobs:
            self._blobs[oid] = self.git("cat-file", "blob", oid)
        return self._blobs[oid]

    def content(self, entry: TreeEntry) -> bytes:
        """The bytes of a file, large or not."""
        return self.objects.path(entry.pointer.sha256).read_bytes() if entry.pointer else self.blob(entry.blob)

    def history(self, commit: str) -> list[CommitRecord]:
        """The commit and its ancestors, newest first."""
        text = self.git("log", "--format=%H%x00%an%x00%ct%x00%s%x00%b%x01", commit).decode()
        records = (record.strip("\n").split("\0") for record in text.split("\x01") if record.strip())
        return [
            CommitRecord(sha, who, _date(int(when)), title, rest.strip()) for sha, who, when, title, rest in records
        ]

    # --- writing ---

    def commit(
        self, reference: str | None, parent: str | None, changes: Iterable[Change], message: str, author: str = "hub"
    ) -> str:
        """Makes a commit of the parent's files and the changes; moves the reference to it if one is given.

        Raises:
            Refused: 412, if the reference no longer stands at the parent.
        """
        with tempfile.TemporaryDirectory() as scratch:
            index = {"GIT_INDEX_FILE": os.path.join(scratch, "index")}
            self.git("read-tree", *([parent] if parent else ["--empty"]), environment=index)
            records = b"".join(self._index_record(change) for change in changes)
            self.git("update-index", "-z", "--add", "--index-info", standard_input=records, environment=index)
            tree = self.git("write-tree", environment=index).decode().strip()
        commit = self.commit_tree(tree, [parent] if parent else [], message, author)
        if reference:
            self.move(reference, commit, expected=parent or ABSENT)
        return commit

    def commit_tree(self, tree: str, parents: Sequence[str], message: str, author: str = "hub") -> str:
        """A commit of this tree, which nothing refers to yet."""
        named = {"GIT_AUTHOR_NAME": author, "GIT_COMMITTER_NAME": author}
        options = [option for parent in parents for option in ("-p", parent)]
        sha = self.git("commit-tree", tree, *options, standard_input=message.encode(), environment=named)
        return sha.decode().strip()

    def move(self, reference: str, commit: str, *, expected: str) -> None:
        """Sets a reference if it stands where it is expected (``ABSENT``: nowhere)."""
        try:
            self.git("update-ref", reference, commit, expected)
        except Refused as error:
            raise Refused(412, "A commit has happened since. Please refresh and try again.") from error

    def delete(self, reference: str) -> None:
        self.git("update-ref", "-d", reference)

    # --- git ---

    def git(
        self,
        *arguments: str,
        standard_input: bytes = b"",
        environment: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> bytes:
        """Runs git in this repository; empty if it fails and that is allowed."""
        who = {f"GIT_{role}_{key}": "hub@localhost" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        bare = {"PATH": os.environ.get("PATH", ""), "HOME": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        result = subprocess.run(
            ["git", "--git-dir", str(self.folder), *arguments],
            input=standard_input,
            capture_output=True,
            env={**bare, **who, **(environment or {})},
        )
        if result.returncode == 0:
            return result.stdout
        if check:
            raise Refused(500, f"git {arguments[0]}: {result.stderr.decode(errors='replace')[:400]}")
        return b""

    @property
    def _settings(self) -> Path:
        return self.folder / "hub.json"

    def _index_record(self, change: Change) -> bytes:
        path = change.path.encode()
        if change.content is None:
            return b"0 " + ABSENT.encode() + b"\t" + path + b"\0"
        blob = self.git("hash-object", "-w", "--stdin", standard_input=change.content).strip()
        return b"100644 " + blob + b" 0\t" + path + b"\0"

    def _listing(self, commit: str) -> dict[str, TreeEntry]:
        """Every file and folder of a commit by path."""
        if commit not in self._listings:
            entries = self._parse(self.git("ls-tree", "-z", "-l", "-r", "-t", commit))
            self._listings[commit] = {entry.path: entry for entry in entries}
        return self._listings[commit]

    def _parse(self, listing: bytes) -> list[TreeEntry]:
        """Entries of ``ls-tree -z -l``; pointers among the files are read all at once."""
        rows = [record.split(b"\t", 1) for record in listing.split(b"\0") if record]
        fields = [(head.split(), name.decode()) for head, name in rows]
        small = [head[2].decode() for head, _ in fields if head[1] == b"blob" and int(head[3]) <= LONGEST_POINTER]
        self._read_pointers(small)
        entries = []
        for (_, kind, oid, size), path in fields:
            blob = oid.decode()
            if kind == b"tree":
                entries.append(TreeEntry(path, blob, 0, is_folder=True))
            else:
                pointer = self._pointers.get(blob)
                entries.append(TreeEntry(path, blob, pointer.size if pointer else int(size), pointer))
        return entries

    def _read_pointers(self, blobs: Iterable[str]) -> None:
        """Remembers which of these blobs are pointers: a blob never changes."""
        unknown = [blob for blob in blobs if blob not in self._pointers]
        if not unknown:
            return
        stream = self.git("cat-file", "--batch", standard_input="".join(f"{blob}\n" for blob in unknown).encode())
        at = 0
        for blob in unknown:
            head_end = stream.index(b"\n", at) + 1
            size = int(stream[at:head_end].split()[2])
            self._pointers[blob] = read_pointer(stream[head_end : head_end + size])
            at = head_end + size + 1


def _date(seconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
