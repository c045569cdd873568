"""What the status of an HTTP answer means to somebody who publishes: wait, or do something about it."""

from collections.abc import Mapping

from megatron_poro.errors import HubError
from megatron_poro.hub.patience import Trouble

_WAIT = {
    408: "the server waited too long for us",
    409: "the repository is being changed by another request",
    412: "the repository has changed meanwhile",
    425: "the server was not ready",
    429: "too many requests",
}


def refusal(
    status: int, *, doing: str, name: str, said: str | None = None, headers: Mapping[str, str] | None = None
) -> Trouble:
    """What to make of an answer that is an error.

    Args:
        status: of the answer.
        doing: what was asked for.
        name: the repository.
        said: what the server says to it, if anything.
        headers: of the answer.

    Returns:
        The trouble, if waiting helps.

    Raises:
        HubError: if it does not.
    """
    because = f" ({' '.join(said.split()).rstrip('.')})" if said else ""
    if status in _WAIT or status >= 500:
        reason = _WAIT.get(status, "the server is in trouble")
        return Trouble(f"{reason}, status {status}{because}", _asked_wait(headers or {}))
    if status == 401:
        raise HubError(
            f"{doing} was refused: there is no valid token{because}. Set HF_TOKEN to a token that may write to {name}, "
            "or log in with `hf auth login`."
        )
    if status == 403:
        raise HubError(
            f"{doing} was refused: the token may not write to {name}{because}. Use one that may, or a --repo that is "
            "yours."
        )
    if status == 404:
        raise HubError(f"{doing} failed: the Hub does not know it{because}. Check --repo, and who may see it.")
    if status == 413:
        raise HubError(f"{doing} was refused as too large{because}. Export with a smaller export.max_shard_bytes.")
    raise HubError(f"{doing} was refused with status {status}{because}.")


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds from ``Retry-After``; a date in it is not read."""
    value = headers.get("Retry-After", headers.get("retry-after", "")).strip()
    return float(value) if value.isdigit() else None
