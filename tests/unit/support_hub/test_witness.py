"""A clone agrees with the hub, and a damaged large file does not go unseen, with git-lfs and without."""

import hashlib
from pathlib import Path

import pytest

from tests.support.hub import witness
from tests.support.hub.faults import Answer
from tests.support.hub.server import Hub
from tests.support.hub.witness import LFS_FSCK, OWN_COMPARISON, clone
from tests.unit.support_hub.caller import call, commit, new_model

CONTENT = bytes(range(256)) * 100
OID = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def published(hub: Hub) -> Hub:
    """A hub with a model whose ``main`` has a small and a large file."""
    new_model(hub)
    call(hub, "PUT", f"/objects/poro/tiny/{OID}", CONTENT, storage=True)
    large = ("lfsFile", {"path": "model.safetensors", "algo": "sha256", "oid": OID, "size": len(CONTENT)})
    assert commit(hub, ("file", {"path": "deep/config.json", "content": "{}"}), large).status == 200
    return hub


def cloned(hub: Hub, folder: Path, *, lfs: bool | None) -> witness.Clone:
    return clone(hub.url, hub.read_only_token, "poro/tiny", "main", folder, lfs=lfs)


@pytest.mark.parametrize("lfs", [None, False])
def test_a_clone_has_every_file_whole(published: Hub, tmp_path: Path, lfs: bool | None) -> None:
    found = cloned(published, tmp_path / "clone", lfs=lfs)
    assert sorted(found.files) == [".gitattributes", "deep/config.json", "model.safetensors"]
    assert found.files["model.safetensors"] == CONTENT
    assert found.files["deep/config.json"] == b"{}"
    assert found.checked_by == (OWN_COMPARISON if lfs is False else found.checked_by)
    assert found.checked_by in (LFS_FSCK, OWN_COMPARISON)


@pytest.mark.parametrize("lfs", [None, False])
def test_a_large_file_that_rots_on_the_server_is_seen(published: Hub, tmp_path: Path, lfs: bool | None) -> None:
    published.repository("poro/tiny").objects.path(OID).write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(AssertionError):
        cloned(published, tmp_path / "clone", lfs=lfs)


def test_a_branch_that_there_is_not_is_not_cloned(published: Hub, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="100B not found"):
        clone(published.url, published.token, "poro/tiny", "100B", tmp_path / "clone")


@pytest.mark.parametrize("lfs", [None, False])
def test_a_clone_meets_no_fault_and_uses_none_up(published: Hub, tmp_path: Path, lfs: bool | None) -> None:
    published.forget()
    published.fail(Answer(503), times=1)
    cloned(published, tmp_path / "clone", lfs=lfs)
    assert {entry.number for entry in published.log} == {0}
