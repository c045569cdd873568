"""The JSON interface to repositories: who am I, create and delete, branches, tags, listings, history."""

import hashlib

from tests.support.hub.contents import Contents
from tests.support.hub.exchange import Refused, Reply, Request, Route, as_json
from tests.support.hub.repository import ABSENT, BAD_BRANCH, GIT_ATTRIBUTES, Change, Repository, TreeEntry

DONE = Reply(content_type="application/json")
MODEL = "/api/models/{owner}/{name}"


# --- the account ---


def whoami(hub: Contents, request: Request) -> Reply:
    user = hub.demand_user(request.user)
    organizations = [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.organizations]
    token = {"displayName": "test", "role": "write" if user.may_write else "read"}
    return as_json(
        {
            "type": "user",
            "id": hashlib.md5(user.name.encode()).hexdigest()[:24],
            "name": user.name,
            "fullname": user.name,
            "isPro": False,
            "orgs": organizations,
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def validate_card(hub: Contents, request: Request) -> Reply:
    """The Hub checks a model card's front matter here; this one has no opinion."""
    request.body.read()
    return as_json({"errors": [], "warnings": []})


# --- repositories ---


def create_repository(hub: Contents, request: Request) -> Reply:
    wanted = request.body.json()
    owner = wanted.get("organization") or hub.demand_user(request.user).name
    hub.demand_write(request.user, owner)
    if wanted.get("type", "model") not in (None, "model"):
        raise Refused(501, "this hub knows models only")
    repository = hub.repository(owner, wanted["name"])
    told = {"url": f"{request.host}/{repository.name}", "name": repository.name}
    with repository.lock:
        if repository.exists:
            raise Refused(409, "You already created this model repo", fields=told)
        repository.create(private=_wants_private(wanted))
    return as_json({**told, "id": repository.identity})


def delete_repository(hub: Contents, request: Request) -> Reply:
    wanted = request.body.json()
    owner = wanted.get("organization") or hub.demand_user(request.user).name
    hub.writable(request.user, owner, wanted["name"]).remove()
    return DONE


def change_settings(hub: Contents, request: Request, owner: str, name: str) -> Reply:
    repository, wanted = hub.writable(request.user, owner, name), request.body.json()
    repository.private = _wants_private(wanted)
    return as_json(wanted)


def check_access(hub: Contents, request: Request, owner: str, name: str) -> Reply:
    hub.readable(request.user, owner, name)
    return DONE


def check_write_access(hub: Contents, request: Request, owner: str, name: str) -> Reply:
    hub.writable(request.user, owner, name)
    return DONE


def _wants_private(wanted: dict[str, object]) -> bool:
    """Newer clients send a visibility, older ones a flag."""
    return bool(wanted.get("private")) or wanted.get("visibility") == "private"


# --- branches and tags ---


def references(hub: Contents, request: Request, owner: str, name: str) -> Reply:
    answer: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
    for reference, commit in hub.readable(request.user, owner, name).references().items():
        _, kind, short = reference.split("/", 2)
        if kind in ("heads", "tags"):
            key = "branches" if kind == "heads" else "tags"
            answer[key].append({"name": short, "ref": reference, "targetCommit": commit})
    return as_json(answer)


def create_branch(hub: Contents, request: Request, owner: str, name: str, branch: str) -> Reply:
    repository, wanted = hub.writable(request.user, owner, name), request.body.json()
    if BAD_BRANCH.search(branch):
        raise Refused(400, f"Invalid branch name: {branch}")
    reference = f"refs/heads/{branch}"
    with repository.lock:
        present = repository.references().get(reference, ABSENT)
        if present != ABSENT and not wanted.get("overwrite"):
            raise Refused(409, f"Reference already exists: {reference}")
        if wanted.get("emptyBranch"):
            first = Change(".gitattributes", GIT_ATTRIBUTES.encode())
            start = repository.commit(None, None, [first], "initial commit")
        else:
            start = repository.resolve(wanted.get("startingPoint") or "main")
        repository.move(reference, start, expected=present)
    return DONE


def delete_branch(hub: Contents, request: Request, owner: str, name: str, branch: str) -> Reply:
    repository = hub.writable(request.user, owner, name)
    if branch == "main":
        raise Refused(403, "Cannot delete the default branch")
    with repository.lock:
        _demand_reference(repository, f"refs/heads/{branch}")
        repository.delete(f"refs/heads/{branch}")
    return DONE


def create_tag(hub: Contents, request: Request, owner: str, name: str, revision: str) -> Reply:
    repository, wanted = hub.writable(request.user, owner, name), request.body.json()
    reference = f"refs/tags/{wanted['tag']}"
    with repository.lock:
        if reference in repository.references():
            raise Refused(409, f"Tag reference already exists: {reference}")
        repository.move(reference, repository.resolve(revision), expected=ABSENT)
    return DONE


def delete_tag(hub: Contents, request: Request, owner: str, name: str, revision: str) -> Reply:
    repository = hub.writable(request.user, owner, name)
    with repository.lock:
        _demand_reference(repository, f"refs/tags/{revision}")
        repository.delete(f"refs/tags/{revision}")
    return DONE


def squash(hub: Contents, request: Request, owner: str, name: str, branch: str) -> Reply:
    """Replaces the history of a branch by one commit of its files."""
    repository, wanted = hub.writable(request.user, owner, name), request.body.json()
    with repository.lock:
        present = _demand_reference(repository, f"refs/heads/{branch}")
        single = repository.commit_tree(f"{present}^{{tree}}", [], wanted.get("message") or "Super-squash branch")
        repository.move(f"refs/heads/{branch}", single, expected=present)
    return DONE


def _demand_reference(repository: Repository, reference: str) -> str:
    commit = repository.references().get(reference)
    if commit is None:
        raise Refused(404, f"Reference does not exist: {reference}", code="RevisionNotFound")
    return commit


# --- listings ---


def info(hub: Contents, request: Request, owner: str, name: str, revision: str = "main") -> Reply:
    repository = hub.readable(request.user, owner, name)
    commit = repository.resolve(revision)
    history = repository.history(commit)
    with_blobs = request.flag("blobs")
    siblings = [_sibling(entry, with_blobs=with_blobs) for entry in repository.files(commit).values()]
    return as_json(
        {
            "_id": repository.identity,
            "id": repository.name,
            "modelId": repository.name,
            "author": owner,
            "sha": commit,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": history[0].date,
            "createdAt": history[-1].date,
            "siblings": siblings,
            "usedStorage": 0,
        }
    )


def tree(hub: Contents, request: Request, owner: str, name: str, revision: str, path: str = "") -> Reply:
    repository = hub.readable(request.user, owner, name)
    listing = repository.entries(repository.resolve(revision), path, recursive=request.flag("recursive"))
    return as_json([_node(hub, entry) for entry in listing])


def paths_info(hub: Contents, request: Request, owner: str, name: str, revision: str) -> Reply:
    repository = hub.readable(request.user, owner, name)
    commit = repository.resolve(revision)
    paths = request.body.form_or_json("paths", request.headers.get("Content-Type", ""))
    found = (repository.entry(commit, path) for path in paths)
    return as_json([_node(hub, entry) for entry in found if entry])


def commits(hub: Contents, request: Request, owner: str, name: str, revision: str) -> Reply:
    repository = hub.readable(request.user, owner, name)
    history = repository.history(repository.resolve(revision))
    page, limit = int(request.query.get("p", 0)), int(request.query.get("limit", 50))
    headers = {"X-Total-Count": str(len(history))}
    if (page + 1) * limit < len(history):
        headers["Link"] = f'<{request.host}{request.path}?p={page + 1}&limit={limit}>; rel="next"'
    shown = [
        {"id": c.sha, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
        for c in history[page * limit : (page + 1) * limit]
    ]
    return as_json(shown, headers=headers)


def _sibling(entry: TreeEntry, *, with_blobs: bool) -> dict[str, object]:
    told: dict[str, object] = {"rfilename": entry.path}
    if with_blobs:
        told.update(size=entry.size, blobId=entry.blob)
        if entry.pointer:
            told["lfs"] = {**_large(entry), "sha256": entry.pointer.sha256}
    return told


def _node(hub: Contents, entry: TreeEntry) -> dict[str, object]:
    told: dict[str, object] = {
        "type": "directory" if entry.is_folder else "file",
        "oid": entry.blob,
        "size": entry.size,
        "path": entry.path,
    }
    if entry.pointer:
        told["lfs"] = {**_large(entry), "oid": entry.pointer.sha256}
        if hub.chunks and (xet := hub.chunks.file_of(entry.pointer.sha256)):
            told["xetHash"] = xet
    return told


def _large(entry: TreeEntry) -> dict[str, object]:
    assert entry.pointer is not None, "only large files have a pointer"
    return {"size": entry.pointer.size, "pointerSize": len(entry.pointer.encode())}


ROUTES = (
    Route("whoami", "GET", "/api/whoami-v2", whoami),
    Route("validate card", "POST", "/api/validate-yaml", validate_card),
    Route("create repository", "POST", "/api/repos/create", create_repository),
    Route("delete repository", "DELETE", "/api/repos/delete", delete_repository),
    Route("settings", "PUT", f"{MODEL}/settings", change_settings),
    Route("check access", "GET", f"{MODEL}/auth-check", check_access),
    Route("check access", "GET", f"{MODEL}/auth-check/write", check_write_access),
    Route("references", "GET", f"{MODEL}/refs", references),
    Route("create branch", "POST", f"{MODEL}/branch/{{branch}}", create_branch),
    Route("delete branch", "DELETE", f"{MODEL}/branch/{{branch}}", delete_branch),
    Route("create tag", "POST", f"{MODEL}/tag/{{revision}}", create_tag),
    Route("delete tag", "DELETE", f"{MODEL}/tag/{{revision}}", delete_tag),
    Route("squash", "POST", f"{MODEL}/super-squash/{{branch}}", squash),
    Route("info", "GET", MODEL, info),
    Route("info", "GET", f"{MODEL}/revision/{{revision}}", info),
    Route("tree", "GET", f"{MODEL}/tree/{{revision}}", tree),
    Route("tree", "GET", f"{MODEL}/tree/{{revision}}/{{path:path}}", tree),
    Route("paths info", "POST", f"{MODEL}/paths-info/{{revision}}", paths_info),
    Route("commits", "GET", f"{MODEL}/commits/{{revision}}", commits),
)
