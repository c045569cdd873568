"""The hub over HTTP: who may do what, what is refused and how, and what faults do to a connection."""

import contextlib
import hashlib
import http.client
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.hub import server
from tests.support.hub.exchange import Refused, Reply, Route
from tests.support.hub.faults import WITNESS_HEADER, Answer, Call, CutReply, CutUpload, LoseReply, Stall
from tests.support.hub.origin import LOOPBACK, UNKNOWN
from tests.support.hub.server import Hub
from tests.unit.support_hub.caller import call, commit, new_model

MODEL = "/api/models/poro/tiny"
CONTENT = bytes(1000)
OBJECT = f"/objects/poro/tiny/{hashlib.sha256(CONTENT).hexdigest()}"
BROKEN = (ConnectionError, http.client.RemoteDisconnected)
FILE = ("file", {"path": "config.json", "content": "e30=", "encoding": "base64"})


# --- who may do what ---


def test_both_origins_listen_on_loopback_only(hub: Hub) -> None:
    for origin in hub._origins:
        assert origin.socket.getsockname()[0] == LOOPBACK == "127.0.0.1"


@pytest.mark.parametrize(
    ("token", "method", "path", "status"),
    [
        (None, "GET", "/api/whoami-v2", 401),
        ("hf_wrong", "GET", "/api/whoami-v2", 401),
        ("hf_read", "GET", "/api/whoami-v2", 200),
        (None, "GET", MODEL, 401),
        ("hf_other", "GET", MODEL, 404),
        ("hf_read", "GET", MODEL, 200),
        ("hf_test", "GET", "/api/models/poro/nothing", 404),
        (None, "GET", "/api/models/poro/nothing", 401),
        ("hf_read", "POST", f"{MODEL}/branch/100B", 403),
        ("hf_read", "POST", f"{MODEL}/commit/main", 403),
        ("hf_read", "POST", f"{MODEL}/preupload/main", 403),
        ("hf_other", "POST", f"{MODEL}/commit/main", 404),
        ("hf_wrong", "POST", f"{MODEL}/commit/main", 401),
        ("hf_read", "GET", f"{MODEL}/xet-write-token/main", 403),
        ("hf_read", "POST", "/poro/tiny.git/info/lfs/objects/batch", 403),
        ("hf_read", "GET", "/poro/tiny/info/refs?service=git-receive-pack", 403),
        ("hf_test", "GET", f"{MODEL}/tree/900B", 404),
        ("hf_test", "GET", "/poro/tiny/resolve/main/nothing", 404),
        ("hf_test", "GET", "/somewhere/else", 404),
    ],
)
def test_everyone_gets_what_is_theirs(hub: Hub, token: str | None, method: str, path: str, status: int) -> None:
    new_model(hub)
    sent = {"operation": "upload", "objects": []} if method == "POST" else None
    assert call(hub, method, path, sent, token=token).status == status


def test_a_private_model_of_someone_else_cannot_be_told_from_none(hub: Hub) -> None:
    new_model(hub)
    there, none = (call(hub, "GET", f"/api/models/poro/{name}", token="hf_other") for name in ("tiny", "nothing"))
    assert (there.status, there.body) == (none.status, none.body)


def test_a_public_model_is_read_without_a_token(hub: Hub) -> None:
    new_model(hub)
    assert call(hub, "PUT", f"{MODEL}/settings", {"private": False}).status == 200
    assert call(hub, "GET", MODEL, token=None).json["private"] is False


def test_a_model_in_someone_elses_name_is_refused(hub: Hub) -> None:
    assert call(hub, "POST", "/api/repos/create", {"name": "tiny", "organization": "other"}).status == 403
    assert call(hub, "POST", "/api/repos/create", {"name": "tiny"}, token="hf_read").status == 403
    assert call(hub, "POST", "/api/repos/create", {"name": "tiny", "organization": "acme"}).status == 200


def test_creating_twice_says_where_it_is(hub: Hub) -> None:
    new_model(hub)
    again = call(hub, "POST", "/api/repos/create", {"name": "tiny"})
    assert (again.status, again.json["url"]) == (409, f"{hub.url}/poro/tiny")


def test_a_token_sent_to_the_storage_origin_is_refused(hub: Hub) -> None:
    new_model(hub)
    assert call(hub, "PUT", OBJECT, CONTENT, storage=True, headers={"Authorization": "Bearer hf_test"}).status == 400
    assert call(hub, "PUT", OBJECT, CONTENT, storage=True).status == 200


# --- branches and commits ---


def test_a_branch_is_made_once_and_from_the_commit_named(hub: Hub) -> None:
    root = new_model(hub)
    assert commit(hub, FILE).status == 200
    assert call(hub, "POST", f"{MODEL}/branch/100B", {"startingPoint": root}).status == 200
    assert call(hub, "POST", f"{MODEL}/branch/100B", {"startingPoint": "main"}).status == 409
    assert call(hub, "POST", f"{MODEL}/branch/200B").status == 200
    branches = hub.repository("poro/tiny").branches()
    assert branches["100B"] == root
    assert branches["200B"] == branches["main"] != root


def test_main_cannot_be_deleted_and_others_once(hub: Hub) -> None:
    new_model(hub)
    call(hub, "POST", f"{MODEL}/branch/100B")
    statuses = [call(hub, "DELETE", f"{MODEL}/branch/{name}").status for name in ("main", "100B", "100B")]
    assert statuses == [403, 200, 404]


@pytest.mark.parametrize("name", ["a%20b", "a..b", "x.lock", "-x", "0" * 40])
def test_a_branch_name_that_git_refuses_is_refused(hub: Hub, name: str) -> None:
    new_model(hub)
    assert call(hub, "POST", f"{MODEL}/branch/{name}").status == 400


def test_tags_stand_for_commits(hub: Hub) -> None:
    root = new_model(hub)
    statuses = [call(hub, "POST", f"{MODEL}/tag/main", {"tag": "v1"}).status for _ in range(2)]
    assert statuses == [200, 409]
    assert call(hub, "GET", f"{MODEL}/refs").json["tags"] == [
        {"name": "v1", "ref": "refs/tags/v1", "targetCommit": root}
    ]
    assert [call(hub, "DELETE", f"{MODEL}/tag/v1").status for _ in range(2)] == [200, 404]


def test_a_commit_on_a_parent_that_is_no_longer_the_head_is_refused(hub: Hub) -> None:
    root = new_model(hub)
    first = commit(hub, FILE, parentCommit=root).json["commitOid"]
    late = commit(hub, ("deletedFile", {"path": "config.json"}), parentCommit=root)
    assert late.status == 412
    assert "commit has happened since" in late.headers["X-Error-Message"]
    assert hub.repository("poro/tiny").resolve("main") == first


def test_a_commit_with_one_thing_wrong_changes_nothing(hub: Hub) -> None:
    root = new_model(hub)
    for wrong, status in (
        (("lfsFile", {"path": "m.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}), 400),
        (("deletedFile", {"path": "nothing"}), 404),
        (("deletedFolder", {"path": "nothing"}), 404),
        (("strangeThing", {"path": "x"}), 400),
        (("file", {"path": "big", "content": "x" * (10 * 2**20 + 1)}), 413),
    ):
        assert commit(hub, FILE, wrong).status == status
    assert hub.repository("poro/tiny").resolve("main") == root


def test_folders_are_deleted_with_what_is_below_and_no_more(hub: Hub) -> None:
    new_model(hub)
    files = [("file", {"path": path, "content": ""}) for path in ("a/b", "a/c/d", "ab")]
    assert commit(hub, *files).status == 200
    sha = commit(hub, ("deletedFolder", {"path": "a"})).json["commitOid"]
    assert sorted(hub.repository("poro/tiny").files(sha)) == [".gitattributes", "ab"]


def test_history_is_told_in_pages(hub: Hub) -> None:
    root = new_model(hub)
    head = commit(hub, FILE, description="why").json["commitOid"]
    page = call(hub, "GET", f"{MODEL}/commits/main?limit=1")
    assert [(entry["id"], entry["message"]) for entry in page.json] == [(head, "why")]
    assert page.headers["X-Total-Count"] == "2"
    rest = page.headers["Link"].split(">")[0].removeprefix(f"<{hub.url}")
    assert [entry["id"] for entry in call(hub, "GET", rest).json] == [root]


def test_a_squashed_branch_has_one_commit_and_its_files(hub: Hub) -> None:
    new_model(hub)
    commit(hub, FILE)
    assert call(hub, "POST", f"{MODEL}/super-squash/main", {"message": "one"}).status == 200
    repository = hub.repository("poro/tiny")
    assert [record.title for record in repository.history(repository.resolve("main"))] == ["one"]
    assert "config.json" in repository.files(repository.resolve("main"))


def test_a_deleted_model_is_gone(hub: Hub) -> None:
    new_model(hub)
    assert call(hub, "DELETE", "/api/repos/delete", {"name": "tiny"}).status == 200
    assert call(hub, "GET", MODEL).status == 404


@pytest.mark.parametrize(
    ("xet", "part_bytes", "offered", "chosen"),
    [
        (True, None, ["basic", "multipart", "xet"], "xet"),
        (True, 10, ["basic", "multipart"], "multipart"),
        (False, 10, ["basic", "multipart", "xet"], "multipart"),
        (False, None, ["basic", "multipart", "xet"], "basic"),
        (True, 10, ["basic"], "basic"),
    ],
)
def test_a_transfer_is_chosen_among_those_that_both_know(
    tmp_path: Path, xet: bool, part_bytes: int | None, offered: list[str], chosen: str
) -> None:
    with Hub(tmp_path, xet=xet, part_bytes=part_bytes) as hub:
        new_model(hub)
        wanted = {"operation": "upload", "transfers": offered, "objects": [{"oid": "0" * 64, "size": 20}]}
        assert call(hub, "POST", "/poro/tiny.git/info/lfs/objects/batch", wanted).json["transfer"] == chosen


# --- faults ---


def send_object(hub: Hub) -> int:
    return call(hub, "PUT", OBJECT, CONTENT, storage=True).status


def test_an_injected_status_is_answered_and_nothing_is_done(hub: Hub) -> None:
    root = new_model(hub)
    for status in (401, 403, 412, 429, 500, 503):
        hub.fail(Answer(status, retry_after_seconds=7), route="commit")
        answer = commit(hub, FILE)
        assert (answer.status, answer.headers["Retry-After"]) == (status, "7")
    assert hub.repository("poro/tiny").resolve("main") == root
    assert commit(hub, FILE).status == 200


@pytest.mark.parametrize("after_bytes", [None, 0, 10, 10**6])
def test_a_cut_upload_is_a_broken_connection_and_leaves_no_object(hub: Hub, after_bytes: int | None) -> None:
    new_model(hub)
    hub.fail(CutUpload(after_bytes), route="lfs upload")
    with pytest.raises(BROKEN):
        send_object(hub)
    assert list(hub.contents.folder.rglob("objects/*/*/*")) == []
    assert send_object(hub) == 200


def test_a_lost_reply_hides_that_the_commit_was_made(hub: Hub) -> None:
    root = new_model(hub)
    hub.fail(LoseReply(), route="commit")
    with pytest.raises(BROKEN):
        commit(hub, FILE)
    assert hub.repository("poro/tiny").resolve("main") != root


@pytest.mark.parametrize(("reset", "error"), [(False, http.client.IncompleteRead), (True, ConnectionError)])
def test_a_cut_reply_is_told_from_a_whole_one(hub: Hub, reset: bool, error: type[Exception]) -> None:
    new_model(hub)
    send_object(hub)
    hub.fail(CutReply(reset=reset), route="lfs download")
    with pytest.raises(error):
        call(hub, "GET", OBJECT, storage=True)
    assert call(hub, "GET", OBJECT, storage=True).body == CONTENT


def test_a_function_is_called_before_or_after_the_request_is_carried_out(hub: Hub) -> None:
    root = new_model(hub)
    repository = hub.repository("poro/tiny")
    seen: list[bool] = []
    for carried_out in (False, True):
        hub.fail(Call(lambda: seen.append(repository.resolve("main") == root), carried_out), route="commit")
        with pytest.raises(BROKEN):
            commit(hub, FILE)
    assert seen == [True, False]


def test_a_stall_holds_the_answer_back(hub: Hub) -> None:
    hub.fail(Stall(0.2), route="whoami")
    started = time.monotonic()
    assert call(hub, "GET", "/api/whoami-v2").status == 200
    assert time.monotonic() - started >= 0.2


def _announced(begun: threading.Event, wait: Callable[[float], object], seconds: float) -> None:
    begun.set()
    wait(seconds)


def test_a_stall_ends_with_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> None:
        with contextlib.suppress(*BROKEN):
            call(hub, "GET", "/api/whoami-v2")

    with Hub(tmp_path) as hub:
        closing = hub._shared.closing
        monkeypatch.setattr(closing, "wait", partial(_announced, stalled := threading.Event(), closing.wait))
        hub.fail(Stall(3600), route="whoami")
        waiting = threading.Thread(target=ask)
        waiting.start()
        assert stalled.wait(10)
    waiting.join(timeout=5)
    assert not waiting.is_alive()


def test_requests_are_counted_over_both_origins(hub: Hub) -> None:
    new_model(hub)
    hub.forget()
    hub.fail(Answer(503), at=3)
    statuses = [call(hub, "GET", MODEL).status, send_object(hub), call(hub, "GET", MODEL).status]
    assert statuses == [200, 200, 503]
    assert [(entry.number, entry.route, entry.status) for entry in hub.log] == [
        (1, "info", 200),
        (2, "lfs upload", 200),
        (3, "info", 503),
    ]


def test_a_witness_goes_through_a_hub_that_fails_for_everyone_else(hub: Hub) -> None:
    new_model(hub)
    hub.fail(Answer(503), times=100)
    assert call(hub, "GET", MODEL).status == 503
    assert call(hub, "GET", MODEL, headers={WITNESS_HEADER: "1"}).status == 200


def test_requests_that_the_hub_does_not_know_can_fail_too(hub: Hub) -> None:
    hub.fail(Answer(503), route=UNKNOWN)
    assert [call(hub, "GET", "/somewhere/else").status for _ in range(2)] == [503, 404]


def test_a_fault_for_a_kind_of_request_that_there_is_not_is_a_mistake(hub: Hub) -> None:
    with pytest.raises(AssertionError, match=r"comit is none of \["):
        hub.fail(Answer(503), route="comit")


# --- the server itself ---


def test_an_error_leaves_the_connection_fit_for_the_next_request(hub: Hub) -> None:
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
    for status in (401, 404, 401):
        path = "/nothing" if status == 404 else "/api/repos/create"
        connection.request("POST", path, b'{"name": "x"}')
        reply = connection.getresponse()
        reply.read()
        assert reply.status == status
    connection.close()


def test_closing_ends_connections_that_are_idle(tmp_path: Path) -> None:
    with Hub(tmp_path) as hub:
        idle = socket.create_connection((LOOPBACK, int(hub.url.rsplit(":", 1)[1])), timeout=10)
        call(hub, "GET", "/api/whoami-v2")
    assert idle.recv(1) == b""
    idle.close()


def failing(error: Exception) -> Route:
    """A kind of request that ends in this error."""

    def answer(*arguments: object, **captured: object) -> Reply:
        raise error

    return Route("broken", "GET", "/broken", answer)


@pytest.mark.parametrize("bug", [ZeroDivisionError("a slip"), Refused(500, "git fails")])
def test_a_bug_of_the_hub_fails_whoever_used_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Exception
) -> None:
    monkeypatch.setattr(server, "HUB_ROUTES", (failing(bug),))
    with pytest.raises(AssertionError, match=str(bug)), Hub(tmp_path) as hub:
        assert call(hub, "GET", "/broken").status == 500


def test_a_client_that_breaks_off_in_its_body_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HUB_ROUTES", (failing(ConnectionResetError()),))
    with Hub(tmp_path) as hub, pytest.raises(BROKEN):
        call(hub, "GET", "/broken")


def test_repositories_outlive_the_server(tmp_path: Path) -> None:
    with Hub(tmp_path) as hub:
        root = new_model(hub)
    with Hub(tmp_path) as hub:
        assert call(hub, "GET", MODEL).json["sha"] == root
