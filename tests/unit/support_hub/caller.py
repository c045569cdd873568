"""Plain HTTP requests to a hub, for what no client would send."""

import http.client
import json
import urllib.parse
from collections.abc import Mapping
from email.message import Message
from typing import Any, NamedTuple

from tests.support.hub.server import Hub


class Said(NamedTuple):
    """An answer."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    hub: Hub,
    method: str,
    path: str,
    sent: object = None,
    *,
    token: str | None = "hf_test",
    storage: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Said:
    """Sends one request on a connection of its own; ``sent`` as it is if it is bytes, else as JSON."""
    url = urllib.parse.urlsplit(hub.contents.storage_url if storage else hub.url)
    content = sent if isinstance(sent, bytes) else b"" if sent is None else json.dumps(sent).encode()
    signed = {"Authorization": f"Bearer {token}"} if token and not storage else {}
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=10)
    try:
        connection.request(method, path, content, {**signed, **(headers or {})})
        reply = connection.getresponse()
        return Said(reply.status, reply.headers, reply.read())
    finally:
        connection.close()


def new_model(hub: Hub, name: str = "tiny") -> str:
    """Creates a model of the user "poro" and returns its root commit."""
    assert call(hub, "POST", "/api/repos/create", {"name": name, "visibility": "private"}).status == 200
    return hub.repository(f"poro/{name}").resolve("main")


def commit(hub: Hub, *lines: tuple[str, Mapping[str, object]], branch: str = "main", **head: str) -> Said:
    """Sends a commit to poro/tiny."""
    told: list[object] = [{"key": "header", "value": {"summary": "a change", **head}}]
    told.extend({"key": key, "value": value} for key, value in lines)
    body = "\n".join(map(json.dumps, told)).encode()
    return call(hub, "POST", f"/api/models/poro/tiny/commit/{branch}", body)
