"""What a hub holds: its models, who may do what with them, and where its two origins are."""

import re
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.support.hub.accounts import User, bearer
from tests.support.hub.exchange import Refused
from tests.support.hub.repository import Repository
from tests.support.hub.xet import ChunkStore


def not_signed_in() -> Refused:
    """The refusal of someone unknown; git and git-lfs send a token only after such a challenge."""
    return Refused(401, "Invalid username or password.", headers={"WWW-Authenticate": 'Basic realm="hub"'})


class Contents:
    """Shared by all requests. ``url`` and ``storage_url`` are set when the servers know their ports."""

    def __init__(
        self, folder: Path, tokens: Mapping[str, User], *, part_bytes: int | None = None, xet: bool = True
    ) -> None:
        self.folder = folder
        self.tokens = tokens
        self.part_bytes = part_bytes
        self.chunks = ChunkStore(folder / "xet") if xet else None
        self.url = ""
        self.storage_url = ""
        self._lock = threading.Lock()
        self._repositories: dict[str, Repository] = {}

    def user(self, authorization: str) -> User | None:
        """Whose token this is; None without one.

        Raises:
            Refused: 401, if nobody has this token.
        """
        token = bearer(authorization)
        if token is None:
            return None
        if token not in self.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.tokens[token]

    def repository(self, owner: str, name: str) -> Repository:
        """The repository of this name, which may not exist."""
        if not re.fullmatch(r"[\w.-]+", owner + name, re.ASCII) or ".." in owner + name:
            raise Refused(400, "Invalid repo name")
        full = f"{owner}/{name}"
        with self._lock:
            return self._repositories.setdefault(full, Repository(self.folder / "models" / f"{full}.git", full))

    def readable(self, user: User | None, owner: str, name: str) -> Repository:
        """A repository that this user may read.

        Raises:
            Refused: 401 for someone unknown, else 404: a private repository shows itself to its owners only.
        """
        repository = self.repository(owner, name)
        if repository.exists and (not repository.private or (user and user.owns(owner))):
            return repository
        if user is None:
            raise not_signed_in()
        raise Refused(404, "Repository not found", code="RepoNotFound")

    def writable(self, user: User | None, owner: str, name: str) -> Repository:
        """A repository that this user may write.

        Raises:
            Refused: 401, 403 or 404.
        """
        repository = self.readable(user, owner, name)
        self.demand_write(user, owner)
        return repository

    def demand_write(self, user: User | None, namespace: str) -> User:
        """Raises Refused (401, 403) unless the user may write in the namespace."""
        user = self.demand_user(user)
        if not user.may_write or not user.owns(namespace):
            raise Refused(403, f'Forbidden: you don\'t have write access to namespace "{namespace}"')
        return user

    def demand_user(self, user: User | None) -> User:
        """Raises Refused (401) unless someone is signed in."""
        if user is None:
            raise not_signed_in()
        return user
