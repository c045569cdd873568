"""Who calls, and what they may do: tokens, the namespaces they open, and the refusals of everyone else."""

import base64
from collections.abc import Mapping
from typing import NamedTuple


class User(NamedTuple):
    """The owner of a token."""

    name: str
    may_write: bool = True
    organizations: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organizations


OWNER = User("poro", organizations=("acme",))
TOKENS: Mapping[str, User] = {
    "hf_test": OWNER,
    "hf_read": OWNER._replace(may_write=False),
    "hf_other": User("other"),
}
"""Of the owner of models, of the same user without write access, and of somebody else."""


def bearer(authorization: str) -> str | None:
    """The token of an Authorization header; git and git-lfs send it as the password of a user."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        return base64.b64decode(rest).decode().partition(":")[2]
    return None
