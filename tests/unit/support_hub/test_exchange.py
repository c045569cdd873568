"""Reading requests and forming replies, without a network."""

import io
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest

from tests.support.hub.exchange import Body, ClientGone, FileSlice, Refused, Reply, Request, Route, ranged


def headers(**given: str) -> Message:
    message = Message()
    for name, value in given.items():
        message[name.replace("_", "-")] = value
    return message


def body(sent: bytes, go_ahead: Callable[[], None] = lambda: None, **given: str) -> Body:
    return Body(io.BufferedReader(io.BytesIO(sent)), headers(**given), go_ahead)


def request(**given: str) -> Request:
    return Request("GET", "/", {}, headers(**given), body(b""), "http://hub")


def test_a_body_ends_where_its_length_says() -> None:
    assert body(b"abcdef", Content_Length="4").read() == b"abcd"


def test_a_chunked_body_is_put_together() -> None:
    assert body(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX: y\r\n\r\nrest", Transfer_Encoding="chunked").read() == b"abcde"


@pytest.mark.parametrize("broken", [body(b"abc", Content_Length="4"), body(b"5\r\nabc", Transfer_Encoding="chunked")])
def test_a_body_that_breaks_off_is_not_taken_for_whole(broken: Body) -> None:
    with pytest.raises(ClientGone):
        broken.read()


def test_a_client_that_waits_for_it_is_told_to_go_ahead() -> None:
    told: list[str] = []
    waiting = body(b"abc", lambda: told.append("go"), Content_Length="3", Expect="100-continue")
    assert told == []
    assert (waiting.read(), told) == (b"abc", ["go"])


def test_lists_come_as_forms_or_as_json() -> None:
    form, json = b"paths=a%2Fb&paths=c", b'{"paths": ["a/b", "c"]}'
    assert body(form, Content_Length=str(len(form))).form_or_json("paths", "x-www-form-urlencoded") == ["a/b", "c"]
    assert body(json, Content_Length=str(len(json))).form_or_json("paths", "application/json") == ["a/b", "c"]


@pytest.mark.parametrize(
    ("wanted", "part", "told"),
    [
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
    ],
)
def test_ranges_are_those_of_the_file(tmp_path: Path, wanted: str, part: bytes, told: str) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    for content in (b"0123456789", tmp_path / "file"):
        reply = ranged(content, request(Range=wanted), {})
        assert (reply.status, b"".join(reply.blocks()), reply.headers["Content-Range"]) == (206, part, told)
        assert reply.length == len(part)


def test_without_a_range_all_is_sent(tmp_path: Path) -> None:
    reply = ranged(b"0123", request(), {})
    assert (reply.status, reply.body) == (200, b"0123")
    assert ranged(b"", request(), {}).length == 0


def test_a_range_beyond_the_end_is_refused() -> None:
    with pytest.raises(Refused) as refusal:
        ranged(b"0123", request(Range="bytes=4-"), {})
    assert (refusal.value.status, refusal.value.headers["Content-Range"]) == (416, "bytes */4")


def test_a_slice_stops_at_its_length(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(200_000))
    assert sum(map(len, FileSlice(tmp_path / "file", 10, 150_000).blocks())) == 150_000


def test_a_route_captures_segments_and_the_rest_of_a_path() -> None:
    route = Route("resolve", "GET", "/{owner}/{name}/resolve/{revision}/{path:path}", lambda: Reply())
    found = {"owner": "a", "name": "b.c", "revision": "refs/pr/1", "path": "x/y z"}
    assert route.match("GET", "/a/b.c/resolve/refs%2Fpr%2F1/x/y%20z") == found
    assert route.match("HEAD", "/a/b/resolve/main/x") is not None
    assert route.match("POST", "/a/b/resolve/main/x") is None
    assert route.match("GET", "/a/b/resolve/main") is None
    assert route.match("GET", "/a/b/c/resolve/main/x") is None


def test_a_dot_in_a_route_is_a_dot() -> None:
    route = Route("batch", "POST", "/{name}.git/batch", lambda: Reply())
    assert route.match("POST", "/a.git/batch") == {"name": "a"}
    assert route.match("POST", "/a-git/batch") is None
