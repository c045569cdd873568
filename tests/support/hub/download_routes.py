"""Files by revision and path, as ``from_pretrained`` fetches them, and git's own protocol for ``git clone``."""

import os
import subprocess
import urllib.parse

from tests.support.hub.contents import Contents
from tests.support.hub.exchange import Refused, Reply, Request, Route, ranged


def resolve(hub: Contents, request: Request, owner: str, name: str, revision: str, path: str) -> Reply:
    """The file itself if it is small, a redirect to the origin of the objects if it is large."""
    repository = hub.readable(request.user, owner, name)
    commit = repository.resolve(revision)
    entry = repository.entry(commit, path)
    if entry is None or entry.is_folder:
        raise Refused(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit})
    headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.blob}"', "Accept-Ranges": "bytes"}
    if entry.pointer is None:
        return ranged(repository.blob(entry.blob), request, headers)
    oid = entry.pointer.sha256
    headers["X-Linked-ETag"] = f'"{oid}"'
    headers["X-Linked-Size"] = str(entry.size)
    headers["Location"] = f"{hub.storage_url}/objects/{repository.name}/{oid}"
    if hub.chunks and (xet := hub.chunks.file_of(oid)):
        headers["X-Xet-Hash"] = xet
        headers["Link"] = f'<{hub.url}/api/models/{repository.name}/xet-read-token/{commit}>; rel="xet-auth"'
    return Reply(302, headers=headers)


def git(hub: Contents, request: Request, owner: str, name: str, service: str = "") -> Reply:
    """What git asks, answered by git. A client sends its token only when it is asked for one."""
    writes = "git-receive-pack" in (service, request.query.get("service", ""))
    find = hub.writable if writes else hub.readable
    repository = find(request.user, owner, name.removesuffix(".git"))
    body = request.body.read()
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(repository.folder),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": f"/{service}" if service else "/info/refs",
        "REQUEST_METHOD": request.method,
        "QUERY_STRING": urllib.parse.urlencode(request.query),
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "REMOTE_ADDR": "127.0.0.1",
        **({"REMOTE_USER": request.user.name} if request.user else {}),
    }
    answer = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=environment).stdout
    head, _, payload = answer.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
    status = int(headers.pop("Status", "200").split()[0])
    content_type = headers.pop("Content-Type", "text/plain")
    headers.pop("Content-Length", None)
    return Reply(status, payload, headers, content_type)


def upload_pack(hub: Contents, request: Request, owner: str, name: str) -> Reply:
    return git(hub, request, owner, name, "git-upload-pack")


def receive_pack(hub: Contents, request: Request, owner: str, name: str) -> Reply:
    return git(hub, request, owner, name, "git-receive-pack")


ROUTES = (
    Route("resolve", "GET", "/{owner}/{name}/resolve/{revision}/{path:path}", resolve),
    Route("git", "GET", "/{owner}/{name}/info/refs", git),
    Route("git", "POST", "/{owner}/{name}/git-upload-pack", upload_pack),
    Route("git", "POST", "/{owner}/{name}/git-receive-pack", receive_pack),
)
