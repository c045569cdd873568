"""Large files over HTTP: git-lfs (basic and in parts) and Xet.

Objects live on an origin of their own, as they do on the real Hub: clients follow redirects within the Hub's origin
and then miss the metadata of the first reply; and they must not send their token to any other. So this origin's
addresses are taken for signed ones, and it refuses requests with a token, as S3 does.
"""

import re
from typing import Any

from tests.support.hub.accounts import bearer
from tests.support.hub.contents import Contents
from tests.support.hub.exchange import Refused, Reply, Request, Route, as_json, ranged
from tests.support.hub.repository import Repository
from tests.support.hub.repository_routes import DONE, MODEL
from tests.support.hub.xet import ChunkStore

OBJECT = "/objects/{owner}/{name}/{oid}"
LFS_JSON = "application/vnd.git-lfs+json"
SERVER_MARK = "server"
"""The scope of tokens and a word in addresses of what the hub fetches from itself, so that no fault is spent on it."""


# --- git-lfs: what is to be sent where ---


def batch(hub: Contents, request: Request, owner: str, name: str) -> Reply:
    """Where to send or fetch each object; nothing, for an object that is here already."""
    wanted = request.body.json()
    uploads = wanted["operation"] == "upload"
    repository = (hub.writable if uploads else hub.readable)(request.user, owner, name)
    in_parts = uploads and hub.part_bytes is not None and "multipart" in (wanted.get("transfers") or [])
    objects = []
    for asked in wanted["objects"]:
        told: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"], "authenticated": True}
        if uploads and not repository.objects.has(asked["oid"], asked["size"]):
            told["actions"] = _upload_actions(hub, request, repository, asked["oid"], asked["size"], in_parts=in_parts)
        elif not uploads and repository.objects.has(asked["oid"]):
            address = f"{hub.storage_url}/objects/{repository.name}/{asked['oid']}"
            told["actions"] = {"download": {"href": address, "header": {}}}
        elif not uploads:
            told["error"] = {"code": 404, "message": "Object does not exist"}
        objects.append(told)
    transfer = "multipart" if in_parts else "basic"
    if uploads and hub.chunks and "xet" in (wanted.get("transfers") or []):  # clients of release 1 ask like this
        transfer = "xet"
    reply = as_json({"transfer": transfer, "objects": objects, "hash_algo": "sha256"})
    return Reply(reply.status, reply.body, {}, LFS_JSON)


def _upload_actions(
    hub: Contents, request: Request, repository: Repository, oid: str, size: int, *, in_parts: bool
) -> dict[str, object]:
    here, there = (f"{url}/objects/{repository.name}/{oid}" for url in (request.host, hub.storage_url))
    if in_parts and hub.part_bytes and size > hub.part_bytes:
        count = -(-size // hub.part_bytes)
        parts = {str(number): f"{there}/parts/{number}" for number in range(1, count + 1)}
        return {"upload": {"href": f"{here}/complete", "header": {"chunk_size": str(hub.part_bytes), **parts}}}
    token = request.headers.get("Authorization")  # git-lfs sends the headers of an action as they are given
    header = {"Authorization": token} if token else {}
    return {"upload": {"href": there, "header": {}}, "verify": {"href": f"{here}/verify", "header": header}}


def locks(hub: Contents, request: Request, owner: str, name: str) -> Reply:
    """git-lfs asks before a push and goes on without."""
    raise Refused(404, "this hub has no locks")


def verify(hub: Contents, request: Request, owner: str, name: str, oid: str) -> Reply:
    wanted = request.body.json()
    if not hub.writable(request.user, owner, name).objects.has(oid, wanted["size"]):
        raise Refused(404, "object was not uploaded")
    return as_json({})


def complete(hub: Contents, request: Request, owner: str, name: str, oid: str) -> Reply:
    """Joins the parts of an object. Its address counts as signed, like those of the parts."""
    parts = [(int(part["partNumber"]), str(part["etag"]).strip('"')) for part in request.body.json()["parts"]]
    _stored(hub, owner, name).objects.join_parts(oid, parts)
    return as_json({"success": True})


# --- git-lfs: the objects ---


def put_object(hub: Contents, request: Request, owner: str, name: str, oid: str) -> Reply:
    _stored(hub, owner, name).objects.put(oid, request.body.blocks())
    return DONE


def put_part(hub: Contents, request: Request, owner: str, name: str, oid: str, number: str) -> Reply:
    tag = _stored(hub, owner, name).objects.put_part(oid, int(number), request.body.blocks())
    return Reply(headers={"ETag": f'"{tag}"'})


def get_object(hub: Contents, request: Request, owner: str, name: str, oid: str) -> Reply:
    objects = _stored(hub, owner, name).objects
    if not objects.has(oid):
        raise Refused(404, "no such object")
    return ranged(objects.path(oid), request, {"ETag": f'"{oid}"'})


def get_blob(hub: Contents, request: Request, blob: str) -> Reply:
    path = _chunks(hub).blob(blob)
    if not path.exists():
        raise Refused(404, "no such blob")
    return ranged(path, request, {})


def _stored(hub: Contents, owner: str, name: str) -> Repository:
    repository = hub.repository(owner, name)
    if not repository.exists:
        raise Refused(404, "no such repository")
    return repository


# --- Xet ---


def xet_write_token(hub: Contents, request: Request, owner: str, name: str, revision: str) -> Reply:
    hub.writable(request.user, owner, name)
    return _xet_token(hub, "write")


def xet_read_token(hub: Contents, request: Request, owner: str, name: str, revision: str) -> Reply:
    hub.readable(request.user, owner, name)
    return _xet_token(hub, "read")


def _xet_token(hub: Contents, scope: str) -> Reply:
    token, end = _chunks(hub).token(scope)
    url = f"{hub.url}/xet"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(end)}
    return as_json({"accessToken": token, "exp": end, "casUrl": url}, headers=headers)


def put_blob(hub: Contents, request: Request, blob: str) -> Reply:
    _demand_scope(hub, request, "write")
    return as_json({"was_inserted": _chunks(hub).put_blob(blob, request.body.blocks())})


def put_shard(hub: Contents, request: Request) -> Reply:
    _demand_scope(hub, request, "write")
    _chunks(hub).put_shard(request.body.read())
    return as_json({"result": 1})


def reconstruction(hub: Contents, request: Request, file: str) -> Reply:
    scope = _chunks(hub).scope(bearer(request.headers.get("Authorization", "")))
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "bytes=0-"))
    if wanted is None:
        raise Refused(400, "the range cannot be read")
    first, last = int(wanted[1]), int(wanted[2]) if wanted[2] else None
    own = f"/{SERVER_MARK}" if scope == SERVER_MARK else ""
    return as_json(_chunks(hub).reconstruction(file, first, last, f"{hub.storage_url}/blobs{own}"))


def not_offered(hub: Contents, request: Request, **captured: str) -> Reply:
    """Deduplication over all repositories and the second version of the protocol: clients go on without."""
    raise Refused(404, "this hub does not offer that")


def is_own(hub: Contents, request: Request) -> bool:
    """Whether the hub sent this request to itself, to put a file together that came by Xet."""
    if request.path.startswith("/xet/") and hub.chunks:
        try:
            return hub.chunks.scope(bearer(request.headers.get("Authorization", ""))) == SERVER_MARK
        except Refused:
            return False
    return request.path.startswith(f"/blobs/{SERVER_MARK}/")


def telemetry(hub: Contents, request: Request, path: str = "") -> Reply:
    request.body.read()
    return as_json({})


def _demand_scope(hub: Contents, request: Request, scope: str) -> None:
    if _chunks(hub).scope(bearer(request.headers.get("Authorization", ""))) != scope:
        raise Refused(403, f"xet token has no {scope} scope")


def _chunks(hub: Contents) -> ChunkStore:
    if hub.chunks is None:
        raise Refused(404, "Xet is not enabled for this repo")
    return hub.chunks


ROUTES = (
    Route("lfs batch", "POST", "/{owner}/{name}.git/info/lfs/objects/batch", batch),
    Route("lfs batch", "POST", "/{owner}/{name}/info/lfs/objects/batch", batch),
    Route("lfs locks", "POST", "/{owner}/{name}.git/info/lfs/locks/verify", locks),
    Route("lfs verify", "POST", f"{OBJECT}/verify", verify),
    Route("lfs complete", "POST", f"{OBJECT}/complete", complete),
    Route("xet token", "GET", f"{MODEL}/xet-write-token/{{revision}}", xet_write_token),
    Route("xet token", "GET", f"{MODEL}/xet-read-token/{{revision}}", xet_read_token),
    Route("xet blob", "POST", "/xet/v1/xorbs/default/{blob}", put_blob),
    Route("xet shard", "POST", "/xet/v1/shards", put_shard),
    Route("xet reconstruction", "GET", "/xet/v1/reconstructions/{file}", reconstruction),
    Route("xet query", "GET", "/xet/v1/chunks/{path:path}", not_offered),
    Route("xet query", "POST", "/xet/v1/xorb-grants/{path:path}", not_offered),
    Route("xet query", "POST", "/xet/v2/shards", not_offered),
    Route("xet query", "GET", "/xet/v2/reconstructions/{file}", not_offered),
    Route("xet telemetry", "POST", "/xet/v1/telemetry/{path:path}", telemetry),
    Route("xet telemetry", "POST", "/v1/telemetry", telemetry),
)
"""On the Hub's own origin."""

STORAGE_ROUTES = (
    Route("lfs part", "PUT", f"{OBJECT}/parts/{{number}}", put_part),
    Route("lfs upload", "PUT", OBJECT, put_object),
    Route("lfs download", "GET", OBJECT, get_object),
    Route("xet download", "GET", "/blobs/{blob}", get_blob),
    Route("xet download", "GET", f"/blobs/{SERVER_MARK}/{{blob}}", get_blob),
)
"""On the origin of the objects."""
