"""What ``huggingface_hub`` makes of the hub: each call the publisher and its readers rely on, over LFS and over Xet."""

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, constants, errors

from tests.support.hub.faults import Answer, CutReply, CutUpload
from tests.support.hub.server import Hub
from tests.support.hub.witness import clone
from tests.unit.support_hub.caller import call, new_model

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client, on every upload

TINY = "poro/tiny"
Attempt = Callable[[HfApi], object]
HTTPError: type[Exception] = errors.HfHubHTTPError.__bases__[0]
LARGE = hashlib.shake_256(b"weights").digest(300_000)


@pytest.fixture(autouse=True)
def _online_by_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client pauses before it tries again


def client_of(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """A client, and an empty model for it."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # release 1 reads the answers to commits with it
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    client = HfApi(endpoint=hub.url, token=hub.token)
    client.create_repo(TINY, private=True)
    return client


@pytest.fixture
def api(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """A client of a hub with an empty model."""
    return client_of(hub, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something to upload."""
    made = tmp_path / "export"
    (made / "deep").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(LARGE)
    (made / "config.json").write_text("{}")
    (made / "deep" / "notes.txt").write_text("notes")
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def on_branch(hub: Hub, branch: str) -> dict[str, bytes]:
    repository = hub.repository(TINY)
    files = repository.files(repository.resolve(branch))
    return {path: repository.content(entry) for path, entry in files.items() if path != ".gitattributes"}


def test_the_user_and_the_model_are_known(hub: Hub, api: HfApi) -> None:
    assert api.whoami()["name"] == "poro"
    assert api.create_repo(TINY, exist_ok=True).repo_id == TINY
    assert api.repo_info(TINY).private
    assert [branch.name for branch in api.list_repo_refs(TINY).branches] == ["main"]


def test_a_folder_goes_up_to_a_branch_and_comes_down_by_its_name(
    hub: Hub, api: HfApi, folder: Path, tmp_path: Path
) -> None:
    root = api.list_repo_commits(TINY)[-1].commit_id
    api.create_branch(TINY, branch="100B", revision=root)
    api.create_branch(TINY, branch="100B", revision=root, exist_ok=True)
    made = api.upload_folder(repo_id=TINY, folder_path=folder, revision="100B")
    assert on_branch(hub, "100B") == contents(folder)
    assert on_branch(hub, "main") == {}
    down = api.snapshot_download(TINY, revision="100B", cache_dir=tmp_path / "cache")
    fetched = contents(Path(down))
    fetched.pop(".gitattributes")
    assert fetched == contents(folder)
    tree = {entry.path: entry for entry in api.list_repo_tree(TINY, revision="100B", recursive=True)}
    weights = tree["model.safetensors"]
    assert isinstance(weights, huggingface_hub.RepoFile)
    assert weights.lfs is not None
    assert (weights.size, weights.lfs.sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())
    assert api.repo_info(TINY, revision="100B").sha == made.oid


def test_the_same_folder_again_makes_no_commit(api: HfApi, folder: Path) -> None:
    first = api.upload_folder(repo_id=TINY, folder_path=folder)
    assert api.upload_folder(repo_id=TINY, folder_path=folder).oid == first.oid


def test_main_takes_a_branchs_files_without_an_upload(hub: Hub, api: HfApi, folder: Path) -> None:
    api.create_branch(TINY, branch="100B")
    api.upload_folder(repo_id=TINY, folder_path=folder, revision="100B")
    api.create_commit(TINY, [CommitOperationAdd("stale.txt", b"old")], commit_message="old")
    hub.forget()
    operations = [CommitOperationCopy(path, path, src_revision="100B") for path in contents(folder)]
    api.create_commit(TINY, [*operations, CommitOperationDelete("stale.txt")], commit_message="main: 100B")
    assert on_branch(hub, "main") == contents(folder)
    assert "lfs upload" not in {entry.route for entry in hub.log}


@pytest.mark.parametrize(
    ("token", "attempt", "error", "status"),
    [
        ("hf_wrong", lambda api: api.create_repo("poro/x"), errors.HfHubHTTPError, 401),
        ("hf_read", lambda api: api.create_branch(TINY, branch="x"), errors.HfHubHTTPError, 403),
        ("hf_other", lambda api: api.repo_info(TINY), errors.RepositoryNotFoundError, 404),
        ("hf_test", lambda api: api.repo_info("poro/nothing"), errors.RepositoryNotFoundError, 404),
        ("hf_test", lambda api: api.repo_info(TINY, revision="900B"), errors.RevisionNotFoundError, 404),
        ("hf_test", lambda api: api.hf_hub_download(TINY, "nothing"), errors.EntryNotFoundError, 404),
        ("hf_test", lambda api: api.delete_branch(TINY, branch="main"), errors.HfHubHTTPError, 403),
    ],
)
def test_the_client_tells_refusals_apart(
    hub: Hub,
    api: HfApi,
    token: str,
    attempt: Attempt,
    error: type[errors.HfHubHTTPError],
    status: int,
) -> None:
    with pytest.raises(error) as refusal:
        attempt(HfApi(endpoint=hub.url, token=token))
    assert refusal.value.response.status_code == status


def test_a_late_commit_is_refused(api: HfApi) -> None:
    root = api.repo_info(TINY).sha
    api.create_commit(TINY, [CommitOperationAdd("a", b"1")], commit_message="first", parent_commit=root)
    with pytest.raises(errors.HfHubHTTPError) as refusal:
        api.create_commit(TINY, [CommitOperationAdd("a", b"2")], commit_message="late", parent_commit=root)
    assert refusal.value.response.status_code == 412


def insist(call: Callable[[], str]) -> str:
    """Calls until nothing breaks off: release 2 of the client does so by itself, release 1 in some cases only."""
    for _ in range(2):
        with contextlib.suppress(HTTPError, RuntimeError):
            return call()
    return call()


def test_an_upload_that_is_cut_is_sent_again(hub: Hub, api: HfApi, folder: Path) -> None:
    hub.fail(CutUpload(), route="lfs upload", times=2)
    insist(lambda: api.upload_folder(repo_id=TINY, folder_path=folder).oid)
    assert on_branch(hub, "main") == contents(folder)
    assert [entry.status for entry in hub.log if entry.route == "lfs upload"] == [0, 0, 200]


def test_a_commit_that_meets_a_busy_hub_is_left_to_its_caller(hub: Hub, api: HfApi) -> None:
    hub.fail(Answer(503), route="commit")
    with pytest.raises(errors.HfHubHTTPError):
        api.create_commit(TINY, [CommitOperationAdd("a", b"1")], commit_message="a")
    assert on_branch(hub, "main") == {}


def test_a_download_that_breaks_off_is_not_taken_for_whole(hub: Hub, api: HfApi, folder: Path, tmp_path: Path) -> None:
    api.upload_folder(repo_id=TINY, folder_path=folder)
    hub.fail(CutReply(100_000), route="lfs download")
    path = insist(lambda: str(api.hf_hub_download(TINY, "model.safetensors", cache_dir=tmp_path / "cache")))
    assert Path(path).read_bytes() == LARGE
    assert [entry.route for entry in hub.log].count("lfs download") == 2


def test_large_files_go_up_in_parts(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub(tmp_path / "hub", part_bytes=100_000) as hub:
        api = client_of(hub, monkeypatch)
        hub.fail(CutUpload(), route="lfs part", skip=1)
        insist(lambda: api.upload_folder(repo_id=TINY, folder_path=folder).oid)
        assert on_branch(hub, "main") == contents(folder)
        sent = [entry.path[-1] for entry in hub.log if entry.route == "lfs part" and entry.status == 200]
        assert sent in (["1", "2", "3"], ["1", "1", "2", "3"])  # release 1 of the client begins with the first again


# --- Xet: in a process of its own, since hf_xet keeps a cache and a runtime for as long as the process lives ---

ROUND_TRIP = """
import json, sys
from huggingface_hub import HfApi
folder, cache = sys.argv[1:]
api = HfApi()
api.create_repo("poro/tiny")
api.upload_folder(repo_id="poro/tiny", folder_path=folder)
print(api.snapshot_download("poro/tiny", cache_dir=cache))
"""


@pytest.fixture
def xet_download(hub: Hub, folder: Path, tmp_path: Path) -> dict[str, bytes]:
    """What a client with Xet gets back of the folder that it uploaded."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "home")}
    environment.update(HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="0", HF_HUB_DISABLE_PROGRESS_BARS="1")
    words = [sys.executable, "-c", ROUND_TRIP, str(folder), str(tmp_path / "cache")]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return contents(Path(result.stdout.strip().splitlines()[-1]))


def test_xet_carries_large_files_both_ways(
    hub: Hub, folder: Path, xet_download: dict[str, bytes], tmp_path: Path
) -> None:
    attributes = xet_download.pop(".gitattributes")
    assert xet_download == contents(folder)
    counted = {entry.route for entry in hub.log if entry.number}
    assert {"xet token", "xet blob", "xet shard", "xet reconstruction", "xet download"} <= counted
    assert not {"lfs upload", "lfs download"} & counted
    cloned = clone(hub.url, hub.token, TINY, "main", tmp_path / "clone")
    assert dict(cloned.files) == {**contents(folder), ".gitattributes": attributes}


def test_what_came_by_xet_is_served_without_it_too(hub: Hub, xet_download: dict[str, bytes], tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url, token=hub.token)
    hub.forget()
    path = api.hf_hub_download(TINY, "model.safetensors", cache_dir=tmp_path / "another cache")
    assert Path(path).read_bytes() == LARGE
    assert "lfs download" in {entry.route for entry in hub.log}


def test_a_hub_without_xet_says_so(tmp_path: Path) -> None:
    """A client of release 2 with ``hf_xet`` gives up then; only of files that are given to it open it falls back."""
    with Hub(tmp_path / "hub", xet=False) as hub:
        new_model(hub)
        answer = call(hub, "GET", f"/api/models/{TINY}/xet-write-token/main")
        assert (answer.status, answer.json["error"]) == (404, "Xet is not enabled for this repo")
