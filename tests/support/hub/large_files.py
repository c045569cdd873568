"""git-lfs: pointers, and the objects of one repository that they point to."""

import hashlib
import re
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.hub.exchange import BLOCK, Refused

POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n")
LONGEST_POINTER = 1024
_JOINING = threading.Lock()


class Pointer(NamedTuple):
    """What git keeps in place of a large file."""

    sha256: str
    size: int

    def encode(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


def read_pointer(content: bytes) -> Pointer | None:
    """The pointer that this blob is, or None if it is a file of its own."""
    found = POINTER.fullmatch(content)
    return Pointer(found[1].decode(), int(found[2])) if found else None


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


class ObjectStore:
    """Large files by their sha256, laid out as git-lfs lays them out. A file has its name only when it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, oid: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", oid):
            raise Refused(422, f"{oid} is not a sha256")
        return self.folder / oid[:2] / oid[2:4] / oid

    def has(self, oid: str, size: int | None = None) -> bool:
        path = self.path(oid)
        return path.exists() and size in (None, path.stat().st_size)

    def put(self, oid: str, blocks: Iterable[bytes]) -> None:
        """Stores an object. Raises Refused if the content is not what its name says."""
        with self.unfinished(oid) as path:
            with open(path, "wb") as file:
                file.writelines(blocks)
            self.adopt(oid, path)

    def put_part(self, oid: str, number: int, blocks: Iterable[bytes]) -> str:
        """Keeps one part of an object; returns the tag that its upload is completed with."""
        with self.unfinished(oid) as path:
            with open(path, "wb") as file:
                file.writelines(blocks)
            path.replace(self._part(oid, number))
        return _tag(self._part(oid, number))

    def join_parts(self, oid: str, parts: Sequence[tuple[int, str]]) -> None:
        """Makes an object of its parts, given as number and tag; nothing is left to do where that was done before."""
        with _JOINING:  # a client that was not answered in time asks again, beside its first request
            missing = [n for n, tag in parts if not self._part(oid, n).exists() or _tag(self._part(oid, n)) != tag]
            if missing and self.has(oid):
                return
            if missing:
                raise Refused(400, f"parts {missing} of {oid} were not uploaded as named")
            numbers = sorted(number for number, _ in parts)
            self.put(oid, (block for number in numbers for block in [self._part(oid, number).read_bytes()]))
            for number in numbers:
                self._part(oid, number).unlink()

    def adopt(self, oid: str, path: Path) -> None:
        """Takes a file over as an object. Raises Refused if it is not the one named."""
        if sha256_of(path) != oid:
            raise Refused(422, "the content does not match the object id")
        path.replace(self.path(oid))

    @contextmanager
    def unfinished(self, oid: str) -> Iterator[Path]:
        """A name beside the object for content that is still coming in; nothing of it stays if it does not."""
        path = self.path(oid)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
        try:
            yield unfinished
        finally:
            unfinished.unlink(missing_ok=True)

    def _part(self, oid: str, number: int) -> Path:
        path = self.path(oid)
        return path.with_name(f"{path.name}.part{number}")


def _tag(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
