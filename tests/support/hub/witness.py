"""What a branch holds in the eyes of programs that know nothing of this hub: ``git clone`` and ``git lfs fsck``.

Where git-lfs is not installed, the clone holds pointers; each object is then fetched by its path and its sha256
compared with the pointer here. ``Clone.checked_by`` says which of the two it was.
"""

import hashlib
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.hub.faults import WITNESS_HEADER
from tests.support.hub.large_files import read_pointer

LFS_FSCK = "git lfs fsck"
OWN_COMPARISON = "own comparison of sha256 with pointers, since git-lfs is not installed"


@dataclass(frozen=True)
class Clone:
    """A branch as it was cloned."""

    files: Mapping[str, bytes]
    checked_by: str


def clone(url: str, token: str, model: str, branch: str, folder: Path, *, lfs: bool | None = None) -> Clone:
    """Clones a branch into ``folder`` and verifies its large files.

    Args:
        url: of the hub.
        token: of a user who may read the model.
        model: ``owner/name``.
        branch: what to clone.
        folder: is made.
        lfs: whether to let git-lfs verify; by default if it is installed.

    Raises:
        AssertionError: if git refuses, or a large file is not what its pointer says.
    """
    lfs = shutil.which("git-lfs") is not None if lfs is None else lfs
    address = url.replace("http://", f"http://witness:{token}@") + f"/{model}"
    filters = {"process": "git-lfs filter-process", "required": "true"} if lfs else {}
    options = [f"filter.lfs.{key}={value}" for key, value in filters.items()]
    options.append(f"http.extraHeader={WITNESS_HEADER}: 1")
    words = [word for option in options for word in ("-c", option)]
    home = folder.with_name(folder.name + ".home")  # whatever the user of this machine has configured stays out
    home.mkdir(parents=True)
    _git(home, "clone", "--quiet", *words, "--branch", branch, address, str(folder))
    if lfs:
        _git(home, "-C", str(folder), "lfs", "fsck")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".git" not in path.parts]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    if lfs:
        return Clone(files, LFS_FSCK)
    fetched = {path: _object(url, token, model, branch, path, blob) for path, blob in files.items()}
    return Clone(fetched, OWN_COMPARISON)


def _object(url: str, token: str, model: str, branch: str, path: str, blob: bytes) -> bytes:
    """The content of a file of which git has this blob."""
    pointer = read_pointer(blob)
    if pointer is None:
        return blob
    content = fetch(f"{url}/{model}/resolve/{branch}/{path}", token)
    found = hashlib.sha256(content).hexdigest()
    assert found == pointer.sha256, f"{path} of {branch} has sha256 {found}, its pointer says {pointer.sha256}"
    return content


def fetch(url: str, token: str) -> bytes:
    """The content behind an address of the hub; the token is not taken along when it leads to another origin."""
    request = urllib.request.Request(url, headers={WITNESS_HEADER: "1"})
    request.add_unredirected_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request) as reply:
        content: bytes = reply.read()
    return content


def _git(home: Path, *words: str) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }
    result = subprocess.run(["git", *words], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"git {' '.join(words[:3])}: {result.stdout}{result.stderr}"
