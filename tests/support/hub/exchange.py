"""One HTTP exchange as plain values: a request, a reply, a refusal, and the table that leads from one to the other."""

import io
import json
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.hub.accounts import User

BLOCK = 1 << 16


class Refused(Exception):
    """The request is answered with an error, in the form that clients of the Hub look for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.headers = {**named, **(headers or {})}
        self.fields = {"error": message, **(fields or {})}


class ClientGone(ConnectionError):
    """The other side closed the connection before its request was complete."""


class Body:
    """The body of a request, read when it is wanted and once."""

    def __init__(self, stream: io.BufferedIOBase, headers: Message, go_ahead: Callable[[], None]) -> None:
        self.length = int(headers.get("Content-Length") or 0)
        self.chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        self.taken = False
        self._stream = stream
        self._go_ahead = go_ahead if headers.get("Expect", "").lower() == "100-continue" else lambda: None

    def blocks(self) -> Iterator[bytes]:
        """The body piece by piece, as it arrives."""
        self.taken = True
        self._go_ahead()
        if not self.chunked:
            yield from self._read(self.length)
            return
        while size := int(self._stream.readline().split(b";")[0].strip() or b"0", 16):
            yield from self._read(size)
            self._stream.readline()
        while self._stream.readline().strip():
            pass

    def read(self) -> bytes:
        return b"".join(self.blocks())

    def json(self) -> Any:
        return json.loads(self.read() or b"{}")

    def form_or_json(self, key: str, content_type: str) -> list[str]:
        """A list of strings sent either as a form or as JSON."""
        if "json" in content_type:
            return list(self.json().get(key, []))
        return urllib.parse.parse_qs(self.read().decode()).get(key, [])

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            block = self._stream.read(min(size, BLOCK))
            if not block:
                raise ClientGone(f"{size} bytes of the body are missing")
            size -= len(block)
            yield block


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Message
    body: Body
    host: str
    """The origin that the client called, with its scheme."""
    user: User | None = None

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("true", "1")


class FileSlice(NamedTuple):
    """Bytes of a file that are sent without being held in memory."""

    path: Path
    start: int
    length: int

    def blocks(self) -> Iterator[bytes]:
        left = self.length
        with open(self.path, "rb") as file:
            file.seek(self.start)
            while left and (block := file.read(min(left, BLOCK))):
                left -= len(block)
                yield block


@dataclass(frozen=True)
class Reply:
    """What the client is told."""

    status: int = 200
    body: bytes | FileSlice = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/octet-stream"

    @property
    def length(self) -> int:
        return self.body.length if isinstance(self.body, FileSlice) else len(self.body)

    def blocks(self) -> Iterable[bytes]:
        return self.body.blocks() if isinstance(self.body, FileSlice) else [self.body]


def as_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(value).encode(), headers or {}, "application/json")


def ranged(content: bytes | Path, request: Request, headers: Mapping[str, str]) -> Reply:
    """All of the content, or the single range of it that the request names."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    first, last, status = 0, size - 1, 200
    if wanted and (wanted[1] or wanted[2]):
        first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        if first > last:
            raise Refused(416, "the range lies outside the file", headers={"Content-Range": f"bytes */{size}"})
        status, headers = 206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
    length = last - first + 1
    part = content[first : last + 1] if isinstance(content, bytes) else FileSlice(content, first, length)
    return Reply(status, part, {**headers, "Accept-Ranges": "bytes"})


class Route(NamedTuple):
    """One kind of request: faults and the log speak of it by its name."""

    name: str
    method: str
    pattern: str
    """A path with ``{name}`` for one segment and ``{name:path}`` for the rest of the path."""
    answer: Callable[..., Reply]
    """Called with the hub's contents, the request, and what the pattern captured."""

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """What the pattern captures of this path, unquoted; None if this is another kind of request."""
        if method != self.method and not (method == "HEAD" and self.method == "GET"):
            return None
        escaped = re.sub(r"\\{(\w+):path\\}", r"(?P<\1>.+)", re.escape(self.pattern))
        found = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", escaped), path)
        return {name: urllib.parse.unquote(text) for name, text in found.groupdict().items()} if found else None
