"""The hub as two HTTP servers on loopback: the Hub's own origin, and the one that its large objects live on."""

import threading
from pathlib import Path
from types import TracebackType

from tests.support.hub import commit_routes, download_routes, repository_routes, storage_routes
from tests.support.hub.accounts import TOKENS
from tests.support.hub.contents import Contents
from tests.support.hub.faults import Entry, Fault, Order
from tests.support.hub.origin import UNKNOWN, Origin, Shared
from tests.support.hub.repository import Repository

HUB_ROUTES = (
    *repository_routes.ROUTES,
    *commit_routes.ROUTES,
    *storage_routes.ROUTES,
    *download_routes.ROUTES,
)


class Hub:
    """A running hub; a context manager that stops it, and fails if a request met a bug of the hub itself."""

    def __init__(
        self,
        folder: Path,
        *,
        part_bytes: int | None = None,
        xet: bool = True,
        port: int = 0,
    ) -> None:
        self.token, self.read_only_token, self.stranger_token = TOKENS
        self.contents = Contents(folder, TOKENS, part_bytes=part_bytes, xet=xet)
        self._shared = Shared(self.contents)
        self._plan = self._shared.plan
        self._origins = [
            Origin(self._shared, HUB_ROUTES, port=port, is_storage=False),
            Origin(self._shared, storage_routes.STORAGE_ROUTES, port=0, is_storage=True),
        ]
        self.contents.url, self.contents.storage_url = (origin.url for origin in self._origins)
        for origin in self._origins:
            threading.Thread(target=origin.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return self.contents.url

    def repository(self, name: str) -> Repository:
        """The git repository of a model named ``owner/name``."""
        return self.contents.repository(*name.split("/"))

    # --- faults ---

    def fail(
        self,
        fault: Fault,
        *,
        route: str | None = None,
        method: str | None = None,
        path: str | None = None,
        at: int | None = None,
        skip: int = 0,
        times: int = 1,
    ) -> None:
        """Orders a fault for the requests that match everything given.

        Args:
            fault: what shall happen.
            route: kind of request, by the name it has in the log, as "commit" or "lfs upload".
            method: GET, PUT, ...
            path: regular expression that is searched in the path.
            at: number of the request, from 1, counted since the hub was made or ``forget`` was called.
            skip: matching requests that go well first.
            times: matching requests that fail then.
        """
        assert at is None or not skip, "a request is named either by its number or by those before it"
        known = {UNKNOWN, *(route.name for origin in self._origins for route in origin.routes)}
        assert route is None or route in known, f"{route} is none of {sorted(known)}"
        self._plan.add(Order(fault, route, method, path, at, skip, times))

    def forget(self) -> None:
        """Withdraws orders, empties the log, counts from 1 again."""
        self._plan.clear()

    @property
    def log(self) -> list[Entry]:
        """Requests since the start or the last ``forget``, in order of arrival."""
        return self._plan.log()

    # --- the end ---

    def close(self) -> None:
        """Stops both servers and ends every connection."""
        self._shared.closing.set()
        for origin in self._origins:
            origin.stop()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        bugs = "\n".join(self._shared.bugs)
        assert error is not None or not bugs, f"the test hub itself failed:\n{bugs}"
