"""A model repository on the Hub. The only file that imports huggingface_hub.

What the client leaves to its caller is done here. It repeats uploads but neither a commit nor a branch that met a busy
server; since release 2 it has no timeout at all; its log shows addresses that carry signatures. Every call is repeated
with growing pauses, and what cannot pass becomes one sentence that names the repository and says what to do. The token
is read from the environment or the token file by the client and is never seen here.

Xet is used where ``hf_xet`` is installed; ``HF_HUB_DISABLE_XET=1`` uploads by plain HTTP.
"""

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub import utils as _utils

from megatron_poro.errors import HubError
from megatron_poro.hub.patience import Patience, Trouble
from megatron_poro.hub.refusals import refusal
from megatron_poro.hub.repository import MAIN, BranchMovedError, Changes, RemoteFile

Answer = TypeVar("Answer")

utils: Any = _utils
"""Hands on its functions without saying so to type checkers."""

_TRANSPORT_ERROR: type[Exception] = errors.HfHubHTTPError.__bases__[0]
"""Root of the errors of the HTTP library, which is another one from release to release of the client."""


class HubRemote:
    """A repository on the Hub that ``HF_ENDPOINT`` names (by default huggingface.co).

    Args:
        name: ``owner/name``.
        patience: how often a call is repeated.
        timeout: seconds without a byte after which a request counts as failed.

    Raises:
        HubError: if the name is not one of a repository.
    """

    def __init__(self, name: str, *, patience: Patience = Patience(), timeout: float = 60.0) -> None:  # noqa: B008
        if name.count("/") != 1:
            raise HubError(f"{name!r} does not name a repository; write OWNER/NAME.")
        try:
            utils.validate_repo_id(name)
        except errors.HFValidationError as error:
            raise HubError(f"{name!r} does not name a repository: {str(error).splitlines()[0].rstrip('.')}.") from None
        self.name = name
        self._patience = patience
        self._api = huggingface_hub.HfApi()
        _quiet()
        _give_up_after(timeout)

    def branches(self) -> dict[str, str] | None:
        return self._ask(f"listing the branches of {self.name}", self._branches)

    def create(self, *, private: bool) -> None:
        def call() -> None:
            try:
                self._api.create_repo(self.name, private=private or None)
            except errors.HfHubHTTPError as error:
                if error.response.status_code != 409 or self._branches() is None:
                    raise

        self._ask(f"creating {self.name}", call)

    def root_commit(self) -> str:
        return self._ask(
            f"looking for the first commit of {self.name}",
            lambda: self._api.list_repo_commits(self.name, revision=MAIN)[-1].commit_id,
        )

    def create_branch(self, branch: str, *, commit: str) -> None:
        self._ask(
            f"creating branch {branch} of {self.name}",
            lambda: self._api.create_branch(self.name, branch=branch, revision=commit, exist_ok=True),
        )

    def delete_branch(self, branch: str) -> None:
        def call() -> None:
            try:
                self._api.delete_branch(self.name, branch=branch)
            except errors.HfHubHTTPError as error:
                if error.response.status_code != 404:
                    raise

        self._ask(f"removing branch {branch} of {self.name}", call)

    def files(self, revision: str) -> dict[str, RemoteFile]:
        def call() -> dict[str, RemoteFile]:
            entries = self._api.list_repo_tree(self.name, recursive=True, revision=revision)
            return {
                entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
                for entry in entries
                if isinstance(entry, huggingface_hub.RepoFile)
            }

        return self._ask(f"listing the files of {self.name} at {revision}", call)

    def read(self, path: str, *, revision: str) -> bytes:
        def call() -> bytes:
            url = huggingface_hub.hf_hub_url(self.name, path, revision=revision, endpoint=self._api.endpoint)
            response = utils.get_session().get(url, headers=utils.build_hf_headers())
            utils.hf_raise_for_status(response)
            content: bytes = response.content
            return content

        return self._ask(f"reading {path} of {self.name} at {revision}", call)

    def commit(self, branch: str, changes: Changes, *, message: str, parent: str) -> str:
        def call() -> str:
            # made anew for each try: the client notes in them how far it came
            operations: list[Any] = [
                *(huggingface_hub.CommitOperationAdd(path, content) for path, content in changes.adds.items()),
                *(
                    huggingface_hub.CommitOperationCopy(path, path, src_revision=source)
                    for path, source in changes.copies.items()
                ),
                *(huggingface_hub.CommitOperationDelete(path, is_folder=False) for path in sorted(changes.deletes)),
            ]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what a server thinks of the card; what is wrong raises
                    made = self._api.create_commit(
                        self.name, operations, commit_message=message, revision=branch, parent_commit=parent
                    )
            except errors.HfHubHTTPError as error:
                if error.response.status_code == 412:
                    raise BranchMovedError(
                        f"branch {branch} of {self.name} was changed by somebody else while it was written to; run the "
                        "command again."
                    ) from error
                raise
            return str(made.oid)

        return self._ask(f"uploading to branch {branch} of {self.name}", call)

    def _branches(self) -> dict[str, str] | None:
        try:
            refs = self._api.list_repo_refs(self.name)
        except errors.RepositoryNotFoundError as error:
            if error.response.status_code == 404:
                return None
            raise
        return {branch.name: branch.target_commit for branch in refs.branches}

    def _ask(self, doing: str, call: Callable[[], Answer]) -> Answer:
        return self._patience.ask(doing, call, lambda error: _trouble(error, doing, self.name))


def _trouble(error: Exception, doing: str, name: str) -> Trouble | None:
    """What may pass of what the client raises; raises a ``HubError`` for what will not."""
    if isinstance(error, HubError):
        return None
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        raise HubError(f"{doing} failed: the Hub does not accept the head of the card: {_one_line(error)}.") from error
    for cause in _causes(error):
        if isinstance(cause, errors.HfHubHTTPError):
            if cause is not error:  # the storage behind the Hub; its addresses expire, and a new try gets new ones
                return Trouble(f"the storage answered with status {cause.response.status_code}")
            return refusal(
                cause.response.status_code,
                doing=doing,
                name=name,
                said=cause.server_message,
                headers=cause.response.headers,
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            raise HubError(f"{doing} needs the network, and HF_HUB_OFFLINE is set; unset it.") from error
        if isinstance(cause, errors.LocalTokenNotFoundError):
            return refusal(401, doing=doing, name=name)
        if isinstance(cause, _TRANSPORT_ERROR | ConnectionError | TimeoutError):
            return Trouble(f"the connection failed ({type(cause).__name__})")
        if isinstance(cause, json.JSONDecodeError):
            return Trouble("the answer of the server was not JSON")
        if isinstance(cause, OSError) and cause.filename is not None:  # a file of ours
            raise HubError(
                f"{doing} failed: {cause.filename} cannot be read ({cause.strerror}). Export the milestone again."
            ) from error
    if type(error).__module__.startswith("hf_xet") or _is_from_xet(error):
        return Trouble(f"the upload was cut short ({_one_line(error)})")
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it: uploads run in threads, whose errors arrive wrapped."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    return chain


def _is_from_xet(error: Exception) -> bool:
    """The library behind Xet raises plain errors for whatever its servers do."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "_upload_xet_files":
            return True
        trace = trace.tb_next
    return False


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200]


def _quiet() -> None:
    """Keeps the client from writing addresses with signatures in them, and from drawing where nobody looks."""
    utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()


def _give_up_after(seconds: float) -> None:
    """Gives the client's connections a timeout; it makes new ones after an error, so the maker of them is replaced."""
    from huggingface_hub.utils import _http

    def client() -> Any:
        made = _http.default_client_factory()
        made.timeout = seconds
        return made

    huggingface_hub.set_client_factory(client)
