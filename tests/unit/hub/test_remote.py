"""What the client library raises, and what is made of it; the library itself is tested against a hub elsewhere."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from megatron_poro.errors import HubError, HubUnavailableError
from megatron_poro.hub.patience import Patience
from megatron_poro.hub.remote import HubRemote
from megatron_poro.hub.repository import BranchMovedError, Changes

HUB_ERROR: Any = errors.HfHubHTTPError
TRANSPORT_ERROR: Any = HUB_ERROR.__bases__[0]


class Response:
    """As much of an HTTP answer as an error looks at."""

    request = None

    def __init__(self, status: int) -> None:
        self.status_code = status
        self.headers: dict[str, str] = {}


def hub_error(status: int) -> Exception:
    error: Exception = HUB_ERROR("long text with https://storage/?X-Amz-Signature=secret", response=Response(status))
    return error


def uploading(error: Exception) -> Exception:
    """An error of an upload, which happens in a thread."""
    wrapped = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    wrapped.__cause__ = error
    return wrapped


def missing_file() -> Exception:
    try:
        Path("exports/2k/gone.json").read_bytes()
    except OSError as error:
        return error
    raise AssertionError


@pytest.fixture
def commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Exception]], str]:
    """Makes a commit that meets these errors, one at each try."""

    def call(waiting: list[Exception]) -> str:
        def create_commit(*_: Any, **__: Any) -> Any:
            if waiting:
                raise waiting.pop(0)
            return type("Made", (), {"oid": "abc"})

        monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
        remote = HubRemote("a/b", patience=Patience(attempts=2, sleep=lambda seconds: None))
        return remote.commit("2k", Changes({"a": b"b"}), message="m", parent="0" * 40)

    return call


@pytest.mark.parametrize(
    "error",
    [
        hub_error(503),
        hub_error(429),
        TRANSPORT_ERROR("reset by peer"),
        ConnectionResetError("reset by peer"),
        TimeoutError("slow"),
        json.JSONDecodeError("Expecting value", "<html>", 0),
        uploading(hub_error(403)),  # an address of the storage that has expired
        uploading(hub_error(400)),
        uploading(TRANSPORT_ERROR("broken pipe")),
    ],
    ids=repr,
)
def test_what_may_pass_is_tried_again(commit: Callable[[list[Exception]], str], error: Exception) -> None:
    assert commit([error]) == "abc"
    with pytest.raises(HubUnavailableError, match="tried 2 times"):
        commit([error, error])


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (hub_error(403), "the token may not write to a/b"),
        (errors.LocalTokenNotFoundError("no token"), "there is no valid token"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set; unset it"),
        (missing_file(), r"exports/2k/gone\.json cannot be read \(No such file or directory\)"),
        (ValueError("Invalid metadata in README.md.\n- license is wrong"), "does not accept the head of the card"),
    ],
    ids=repr,
)
def test_what_will_not_pass_is_said_at_once(
    commit: Callable[[list[Exception]], str], error: Exception, complaint: str
) -> None:
    waiting = [error, error]
    with pytest.raises(HubError, match=complaint) as caught:
        commit(waiting)
    assert len(waiting) == 1
    assert caught.value.exit_status == 2


def test_a_branch_that_has_moved_is_told_apart(commit: Callable[[list[Exception]], str]) -> None:
    with pytest.raises(BranchMovedError, match="branch 2k of a/b was changed by somebody else"):
        commit([hub_error(412)])


def test_a_bug_stays_a_bug(commit: Callable[[list[Exception]], str]) -> None:
    with pytest.raises(KeyError):
        commit([KeyError("oid")])


@pytest.mark.parametrize("error", [hub_error(503), hub_error(403)], ids=["passes", "does not"])
def test_addresses_with_signatures_are_not_repeated(
    commit: Callable[[list[Exception]], str], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(HubError) as caught:
        commit([error, error])
    assert "Signature" not in str(caught.value) + caplog.text


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "a/b c", "a/..b", ""])
def test_names_of_no_repository_are_refused(name: str) -> None:
    with pytest.raises(HubError, match="does not name a repository"):
        HubRemote(name)


def test_connections_have_a_timeout() -> None:
    HubRemote("a/b", timeout=12.5)
    session: Any = huggingface_hub.get_session()
    assert session.timeout.read == 12.5
    assert session.timeout.connect == 12.5


def test_the_clients_own_log_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its most talkative it shows requests with their heads and signed addresses."""
    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    HubRemote("a/b")
    assert logger.getEffectiveLevel() >= logging.ERROR
