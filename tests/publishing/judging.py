"""What a reader may find on a branch, how a publication may end, and what must never be."""

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from tests.support.hub.repository import Repository

KILLED = -9
STATUSES = (0, 2, 75, KILLED)
"""How a publication under fire may end: done, refused, to be tried later, killed."""
CARD = "README.md"
ATTRIBUTES = ".gitattributes"

Files = Mapping[str, str]
"""The sha256 of each file by its path."""


def what_is_wrong(found: Files, milestones: Mapping[str, Files]) -> str | None:
    """Why nobody could load a model from these files; None if all is well.

    They are well if they are just those of one milestone with a card, or if there is no model yet at all.

    Args:
        found: what a branch holds.
        milestones: what each milestone consists of, its card left out.
    """
    model = {path: sha256 for path, sha256 in found.items() if path not in (CARD, ATTRIBUTES)}
    if not model:
        return None
    if model not in milestones.values():
        return f"the files are those of no milestone: {_nearest(model, milestones)}"
    return None if CARD in found else "there is a model without a card"


def wrong_values(
    repository: Repository, branch: str, milestones: Mapping[str, Files], *, may_be_empty: bool
) -> list[str]:
    """What is wrong with each value that a branch ever had, one text per value that is; git keeps a log of them."""
    problems = []
    for commit in repository.every_value(branch):
        entries = repository.files(commit)
        found = {path: hashlib.sha256(repository.content(entry)).hexdigest() for path, entry in entries.items()}
        wrong = what_is_wrong(found, milestones)
        if wrong is None and not may_be_empty and not found.keys() - {CARD, ATTRIBUTES}:
            wrong = "there is no model"
        if wrong:
            problems.append(f"{branch} was at {commit}: {wrong}")
    return problems


def different_branches(held: Mapping[str, Files], wanted: Mapping[str, Files]) -> list[str]:
    """Branches that are missing, more, or hold other files."""
    return sorted(name for name in held.keys() | wanted.keys() if held.get(name) != wanted.get(name))


class Ending(NamedTuple):
    """How a publication ended: exit status (``-9``: killed) and all that was printed."""

    status: int
    output: str


def wrong_with_ending(ending: Ending, *, token: str, may_be_killed: bool) -> list[str]:
    """What nobody should have to see at the end of a publication."""
    problems = []
    if ending.status not in STATUSES or (ending.status == KILLED and not may_be_killed):
        problems.append(f"exit status {ending.status}:\n{ending.output}")
    if "Traceback" in ending.output:
        problems.append(f"a traceback instead of a sentence:\n{ending.output}")
    if ending.status in (2, 75) and not re.search(r"^poro: .+\.$", ending.output.strip(), re.MULTILINE):
        problems.append(f"status {ending.status} without a sentence that says why:\n{ending.output}")
    if token in ending.output:
        problems.append("the token was printed")
    return problems


def _nearest(model: Files, milestones: Mapping[str, Files]) -> str:
    """How the files differ from the milestone that they are most like."""
    label = max(milestones, key=lambda label: len(model.items() & milestones[label].items()))
    wanted = milestones[label]
    missing, more = sorted(wanted.keys() - model.keys()), sorted(model.keys() - wanted.keys())
    other = sorted(path for path in model.keys() & wanted.keys() if model[path] != wanted[path])
    return f"compared with {label}, missing {missing}, more {more}, other {other}"
