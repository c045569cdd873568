"""One port of the hub: reads requests, lets the fault plan have its way, answers."""

import contextlib
import socket
import struct
import sys
import threading
import traceback
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.hub import storage_routes
from tests.support.hub.contents import Contents
from tests.support.hub.exchange import Body, Refused, Reply, Request, Route, as_json
from tests.support.hub.faults import (
    WITNESS_HEADER,
    Answer,
    Call,
    CutReply,
    CutUpload,
    Entry,
    FaultPlan,
    LoseReply,
    Stall,
)

LOOPBACK = "127.0.0.1"
UNKNOWN = "unknown"
"""Name of requests that this hub has no answer to; clients ask for this and that, and go on without."""
LONGEST_WAIT_SECONDS = 60
DRAINED_BYTES = 1 << 20
"""An unread body up to this size is read before an error is answered, so that the connection can go on."""


@dataclass
class Shared:
    """What the ports of a hub have in common.

    Attributes:
        contents: what the hub holds.
        plan: what is to go wrong.
        bugs: tracebacks of the hub's own mistakes.
        closing: set when the hub is closed.
    """

    contents: Contents
    plan: FaultPlan = field(default_factory=FaultPlan)
    bugs: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


class Origin(ThreadingHTTPServer):
    """One port. Knows its open connections, so that it can end them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: Shared, routes: Sequence[Route], *, port: int, is_storage: bool) -> None:
        self.hub = hub
        self.routes = routes
        self.is_storage = is_storage
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__((LOOPBACK, port), Exchange)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that breaks off is what this hub is for
            self.hub.bugs.append(traceback.format_exc())


class Exchange(BaseHTTPRequestHandler):
    """Reads a request, lets the fault plan have its way, answers."""

    protocol_version = "HTTP/1.1"
    server_version = "hub"
    timeout = LONGEST_WAIT_SECONDS
    disable_nagle_algorithm = True
    server: Origin

    def log_message(self, *arguments: object) -> None:
        """Nothing is printed: the hub has a log of its own."""

    def exchange(self) -> None:
        """One request and its answer."""
        parts = urllib.parse.urlsplit(self.path)
        body = Body(self.rfile, self.headers, self._go_ahead)
        host = "http://" + self.headers.get("Host", "")
        query = dict(urllib.parse.parse_qsl(parts.query))
        request = Request(self.command, parts.path, query, self.headers, body, host)
        route, captured = self._find_route(request)
        name = route.name if route else UNKNOWN
        hub = self.server.hub
        unseen = WITNESS_HEADER in self.headers or storage_routes.is_own(hub.contents, request)
        entry = hub.plan.enter(name, self.command, self.path, witness=unseen)
        try:
            self._go_through(entry, request, route, captured)
        except OSError:  # the client is gone, as many are that this hub is for
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = exchange  # noqa: N815

    def _find_route(self, request: Request) -> tuple[Route | None, dict[str, str]]:
        for route in self.server.routes:
            if (captured := route.match(request.method, request.path)) is not None:
                return route, captured
        return None, {}

    def _go_through(self, entry: Entry, request: Request, route: Route | None, captured: dict[str, str]) -> None:
        """The request with its fault: before it is carried out, instead of it, or after."""
        fault = entry.fault
        if isinstance(fault, CutUpload):
            self._read_some(request.body, fault.after_bytes)
            return self._reset()
        if isinstance(fault, Call) and not fault.carried_out:
            fault.function()
            return self._reset()
        if isinstance(fault, Stall):
            self.server.hub.closing.wait(fault.seconds)
        reply = _injected(fault) if isinstance(fault, Answer) else self._answer(request, route, captured)
        if isinstance(fault, Call):
            fault.function()
        if isinstance(fault, LoseReply | Call):
            return self._reset()
        entry.status = reply.status
        if not request.body.taken:
            self._skip(request.body)
        if isinstance(fault, CutReply):
            self._send(reply, fault.after_bytes if fault.after_bytes is not None else reply.length // 2)
            return self._reset() if fault.reset else self._hang_up()
        self._send(reply)

    def _answer(self, request: Request, route: Route | None, captured: dict[str, str]) -> Reply:
        """What the hub says, were there no faults."""
        try:
            token = self.headers.get("Authorization", "")
            if self.server.is_storage and token:
                raise Refused(400, "Only one auth mechanism allowed: a signed address was called with a token")
            if route is None:
                raise Refused(404, "Sorry, we can't find the page you are looking for.")
            has_own_tokens = self.server.is_storage or request.path.startswith("/xet/")
            user = None if has_own_tokens else self.server.hub.contents.user(token)
            return route.answer(self.server.hub.contents, replace(request, user=user), **captured)
        except Refused as refusal:
            if refusal.status == 500:  # git did not do what it was told
                self.server.hub.bugs.append(traceback.format_exc())
            return as_json(refusal.fields, refusal.status, refusal.headers)
        except (ConnectionError, TimeoutError):  # the client broke off in the middle of its body
            raise
        except Exception:
            self.server.hub.bugs.append(traceback.format_exc())
            self.close_connection = True
            return as_json({"error": "the test hub has a bug"}, 500)

    def _send(self, reply: Reply, until: int | None = None) -> None:
        """Sends a reply, or only so many bytes of its body."""
        self.send_response(reply.status)
        content = {"Content-Type": reply.content_type, "Content-Length": str(reply.length)}
        for key, value in {**content, **reply.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        left = reply.length if until is None else until
        for block in reply.blocks():
            self.wfile.write(block[:left])
            left -= len(block)
            if left <= 0:
                return

    def _go_ahead(self) -> None:
        self.send_response_only(100)
        self.end_headers()

    def _read_some(self, body: Body, wanted: int | None) -> None:
        """Reads so many bytes of a body, or half of it."""
        limit = wanted if wanted is not None else body.length // 2
        seen = 0
        for block in body.blocks() if limit else ():
            seen += len(block)
            if seen >= limit:
                return

    def _skip(self, body: Body) -> None:
        """Gets an unread body out of the way, or the connection if the body is large."""
        if body.chunked or body.length > DRAINED_BYTES:
            self.close_connection = True
        else:
            body.read()

    def _hang_up(self) -> None:
        """Closes the connection in order, though more was promised."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        """Ends the connection with a reset: the client must not take what it has for a whole answer."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def _injected(fault: Answer) -> Reply:
    headers = {"Retry-After": str(fault.retry_after_seconds)} if fault.retry_after_seconds is not None else {}
    return as_json({"error": f"injected {fault.status}"}, fault.status, headers)
