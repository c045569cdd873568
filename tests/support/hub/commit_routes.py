"""From files on a disk to a commit: how each file is to be sent, and the commit that names them all."""

import base64
import fnmatch
import json
from collections.abc import Iterable, Iterator
from typing import Any

from tests.support.hub.contents import Contents
from tests.support.hub.exchange import Refused, Reply, Request, Route, as_json
from tests.support.hub.large_files import Pointer
from tests.support.hub.repository import Change, Repository, TreeEntry
from tests.support.hub.repository_routes import MODEL

LARGEST_REGULAR_BYTES = 10 * 2**20


def preupload(hub: Contents, request: Request, owner: str, name: str, revision: str) -> Reply:
    """Says of each file whether it goes into the commit or into large file storage, and what is there already."""
    repository, wanted = hub.writable(request.user, owner, name), request.body.json()
    commit = repository.resolve(revision)
    present = repository.files(commit)
    large = _large_patterns(repository, present.get(".gitattributes"))
    ignored = [
        line.strip() for line in (wanted.get("gitIgnore") or "").splitlines() if line.strip()[:1] not in ("", "#")
    ]
    answer = []
    for file in wanted["files"]:
        path = file["path"]
        is_large = file["size"] > LARGEST_REGULAR_BYTES or _matches(path, large)
        told = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": _matches(path, ignored)}
        if old := present.get(path):
            told["oid"] = old.pointer.sha256 if old.pointer else old.blob
        answer.append(told)
    return as_json({"files": answer, "commitOid": commit})


def commit(hub: Contents, request: Request, owner: str, name: str, branch: str) -> Reply:
    """One commit of everything that the request names, or none at all."""
    repository = hub.writable(request.user, owner, name)
    user = hub.demand_user(request.user)
    if "create_pr" in request.query:
        raise Refused(501, "this hub has no pull requests")
    lines = [json.loads(line) for line in request.body.read().splitlines() if line.strip()]
    head: dict[str, str] = next((line["value"] for line in lines if line["key"] == "header"), {})
    operations = [(line["key"], line["value"]) for line in lines if line["key"] != "header"]
    for kind, value in operations:  # before the lock is taken: a file that came by Xet is put together here
        if kind == "lfsFile":
            _demand_object(hub, repository, value)
    reference = branch if branch.startswith("refs/") else f"refs/heads/{branch}"
    with repository.lock:
        parent = repository.resolve(reference)
        if head.get("parentCommit", parent) != parent:
            raise Refused(412, "The provided parent commit is not the head of the branch: a commit has happened since.")
        changes = list(_changes(repository, operations, repository.files(parent)))
        message = "\n\n".join(text for text in (head.get("summary"), head.get("description")) if text)
        sha = repository.commit(reference, parent, changes, message or "commit", user.name)
    url = f"{request.host}/{repository.name}/commit/{sha}"
    return as_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def _changes(
    repository: Repository, operations: Iterable[tuple[str, Any]], present: dict[str, TreeEntry]
) -> Iterator[Change]:
    for kind, value in operations:
        path: str = value["path"]
        if kind == "file":
            text: str = value["content"]
            content = base64.b64decode(text) if value.get("encoding") == "base64" else text.encode()
            if len(content) > LARGEST_REGULAR_BYTES:
                raise Refused(413, f"{path} is larger than 10 MiB: use LFS")
            yield Change(path, content)
        elif kind == "lfsFile":
            size = repository.objects.path(value["oid"]).stat().st_size
            yield Change(path, Pointer(value["oid"], size).encode())
        elif kind in ("deletedFile", "deletedFolder"):
            is_folder = kind == "deletedFolder"
            gone = [p for p in present if (p.startswith(path.rstrip("/") + "/") if is_folder else p == path)]
            if not gone:
                raise Refused(404, f"{path} does not exist, so it cannot be deleted", code="EntryNotFound")
            yield from (Change(p, None) for p in gone)
        else:
            raise Refused(400, f"unknown operation {kind}")


def _demand_object(hub: Contents, repository: Repository, value: dict[str, Any]) -> None:
    """Raises Refused (400) unless the large file is here, or can be put together from what came by Xet."""
    oid: str = value["oid"]
    if repository.objects.has(oid):
        return
    if hub.chunks:
        with repository.objects.unfinished(oid) as path:
            if hub.chunks.rebuild(oid, value.get("size", 0), path, endpoint=f"{hub.url}/xet"):
                repository.objects.adopt(oid, path)
                return
    raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']} ({oid})")


def _large_patterns(repository: Repository, attributes: TreeEntry | None) -> list[str]:
    if attributes is None:
        return []
    lines = repository.blob(attributes.blob).decode().splitlines()
    return [line.split()[0] for line in lines if "filter=lfs" in line]


def _matches(path: str, patterns: list[str]) -> bool:
    name = path.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(path, pattern) for pattern in patterns)


ROUTES = (
    Route("preupload", "POST", f"{MODEL}/preupload/{{revision}}", preupload),
    Route("commit", "POST", f"{MODEL}/commit/{{branch}}", commit),
)
