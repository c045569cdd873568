"""A process that reads ``main`` over and over, as ``from_pretrained`` does: the commit first, then every file of it.

``python -m tests.publishing.reader URL TOKEN MODEL MILESTONES.json`` looks until its standard input is closed, then
prints what it saw as JSON. It asks as a witness, so no fault meets it. Only the standard library is used.
"""

import hashlib
import json
import select
import subprocess
import sys
import urllib.error
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.publishing.judging import what_is_wrong
from tests.support.hub.witness import fetch

PAUSE_SECONDS = 0.05


@dataclass
class Sight:
    """What a reader saw.

    Attributes:
        looks: how often it read all of ``main``.
        heads: commits that ``main`` stood at.
        broken: what was wrong, one text per look.
    """

    looks: int = 0
    heads: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Reader:
    """Runs this file as a process."""

    def __init__(self, url: str, token: str, model: str, milestones: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, url, token, model, str(milestones)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> Sight:
        """Ends it after the look that it is at."""
        printed, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, "the reader itself failed"
        return Sight(**json.loads(printed))

    def kill(self) -> None:
        """Ends it at once, whatever it is at."""
        self._process.kill()
        self._process.wait()


def look(url: str, token: str, model: str, milestones: dict[str, dict[str, str]]) -> tuple[str | None, str | None]:
    """Reads all of ``main`` once; returns its commit (None if there is no model) and what is wrong with it."""
    try:
        refs = json.loads(fetch(f"{url}/api/models/{model}/refs", token))
    except urllib.error.HTTPError as error:
        if error.code == 404:  # not created yet
            return None, None
        raise
    head = next(branch["targetCommit"] for branch in refs["branches"] if branch["name"] == "main")
    try:
        tree = json.loads(fetch(f"{url}/api/models/{model}/tree/{head}?recursive=true", token))
        found = {
            entry["path"]: _checked(fetch(f"{url}/{model}/resolve/{head}/{entry['path']}", token), entry)
            for entry in tree
            if entry["type"] == "file"
        }
    except (OSError, ValueError) as error:
        return head, f"a file that is listed cannot be read: {error!r}"
    return head, what_is_wrong(found, milestones)


def _checked(content: bytes, entry: dict[str, Any]) -> str:
    """The sha256 of a content. Raises ValueError if it is not what the listing says."""
    sha256 = hashlib.sha256(content).hexdigest()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    named, found = (entry["lfs"]["oid"], sha256) if "lfs" in entry else (entry["oid"], blob)
    if found != named or len(content) != entry["size"]:
        raise ValueError(f"{entry['path']} is listed as {named}, its content is {found}")
    return sha256


def main() -> None:
    """Looks until standard input is closed."""
    url, token, model, path = sys.argv[1:]
    milestones = json.loads(Path(path).read_text())
    sight, is_over = Sight(), False
    while not is_over:  # the look after the end is the last
        is_over = bool(select.select([sys.stdin], [], [], PAUSE_SECONDS)[0])
        head, wrong = look(url, token, model, milestones)
        sight.looks += 1
        if head and head not in sight.heads:
            sight.heads.append(head)
        if wrong:
            sight.broken.append(f"main at {head}: {wrong}")
    print(json.dumps(asdict(sight)))


if __name__ == "__main__":
    main()
