"""What is to be done so that a repository holds a run's milestones: a pure function of both, nothing is done here.

A branch gets its name when everything in it is verified. It is prepared under another name (``100B.incomplete``,
started from the first commit so that it inherits nothing) and named by pointing a new branch at the verified commit: at
no moment can a reader ask for ``100B`` and get a part of it. ``main`` is changed last, in one commit.

Whatever is met that this run cannot have put there stops the plan before anything is done.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from megatron_poro.errors import HubError
from megatron_poro.hub.exports import LocalExport, LocalFile
from megatron_poro.hub.repository import MAIN, Changes, RemoteFile
from megatron_poro.hub.seal import may_replace
from megatron_poro.units import parse_count

CARD_NAME = "README.md"
ATTRIBUTES_NAME = ".gitattributes"
"""Says which files are large; the server keeps it, so it is neither compared nor removed."""

STAGING_SUFFIX = ".incomplete"
NOT_COMPARED = {CARD_NAME, ATTRIBUTES_NAME}
_LOADED = (".json", ".safetensors", ".bin", ".model", ".txt", ".py", ".jinja", ".gguf", ".pt", ".pth")
"""What a library may pick up from ``main`` together with our files."""


@dataclass(frozen=True)
class Branch:
    """A branch of the repository.

    Attributes:
        commit: what it points to.
        files: what is in it, by path.
        card: text of its card; None if it has none.
    """

    commit: str
    files: Mapping[str, RemoteFile]
    card: str | None = None


@dataclass(frozen=True)
class RemoteState:
    """What a repository holds.

    Attributes:
        name: ``owner/name``.
        exists: whether there is one.
        main: its main branch.
        milestones: the branches that are called like milestones.
        staging: labels whose upload was begun and not finished.
    """

    name: str
    exists: bool = False
    main: Branch = field(default=Branch("", {}))
    milestones: Mapping[str, Branch] = field(default_factory=dict)
    staging: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CreateRepository:
    """Make the repository."""

    def __str__(self) -> str:
        return "create the repository"


@dataclass(frozen=True)
class PublishBranch:
    """Prepare, verify and name the branch of a milestone."""

    export: LocalExport
    card: str

    @property
    def files(self) -> dict[str, LocalFile]:
        """Everything that the branch will hold."""
        return {**self.export.files, CARD_NAME: LocalFile.of_bytes(self.card.encode())}

    def __str__(self) -> str:
        return f"upload and verify {self.export.label}"


@dataclass(frozen=True)
class RemoveStaging:
    """Remove what an interrupted upload left of a milestone whose branch is complete."""

    label: str

    def __str__(self) -> str:
        return f"remove branch {staging_name(self.label)}, left by an interrupted upload"


@dataclass(frozen=True)
class UpdateCard:
    """Replace the card of a branch whose other files are as they should be."""

    branch: str
    card: str

    def __str__(self) -> str:
        return f"update the card of {self.branch}"


@dataclass(frozen=True)
class MoveMain:
    """Make ``main`` hold what a milestone's branch holds, in one commit.

    Attributes:
        label: the milestone.
        card: of ``main``; None leaves the one that is there.
        released: paths on ``main`` that came from milestones and may go.
    """

    label: str
    card: str | None
    released: frozenset[str]

    def __str__(self) -> str:
        return f"point main to {self.label}"


Action = CreateRepository | PublishBranch | RemoveStaging | UpdateCard | MoveMain


def staging_name(label: str) -> str:
    """The branch under which a milestone is prepared."""
    return f"{label}{STAGING_SUFFIX}"


def labels_after(exports: Iterable[LocalExport], remote: RemoteState) -> list[str]:
    """The milestones that have a branch when these exports are published, oldest first."""
    return sorted({*(export.label for export in exports), *remote.milestones}, key=parse_count)


def plan(exports: Sequence[LocalExport], remote: RemoteState, cards: Mapping[str, str]) -> tuple[Action, ...]:
    """What is to be done, in order; nothing if the repository is as it should be.

    Args:
        exports: the milestones to publish.
        remote: what the repository holds.
        cards: the card of each of these milestones and of ``main``.

    Raises:
        HubError: if a branch of a milestone, or ``main``, holds what this run did not put there.
    """
    for export in exports:
        _require_own(export, remote)
    actions: list[Action] = [] if remote.exists else [CreateRepository()]
    for export in exports:
        branch = remote.milestones.get(export.label)
        if branch is None:
            actions.append(PublishBranch(export, cards[export.label]))
        elif _is_due(branch.card, cards[export.label]):
            actions.append(UpdateCard(export.label, cards[export.label]))
    actions += [RemoveStaging(label) for label in sorted(remote.staging & remote.milestones.keys())]
    if labels := labels_after(exports, remote):
        actions += _plan_main(labels[-1], exports, remote, cards[MAIN])
    return tuple(actions)


def cards_left_alone(remote: RemoteState, cards: Mapping[str, str]) -> list[str]:
    """Branches whose card is not ours to replace, although another would be made."""
    branches = {**remote.milestones, MAIN: remote.main}
    return [
        name
        for name, card in cards.items()
        if name in branches and (there := branches[name].card) not in (None, card) and not may_replace(there or "")
    ]


def changes_of_main(main: Mapping[str, RemoteFile], branch: Branch, move: MoveMain) -> Changes:
    """The one commit that makes ``main`` hold what a branch holds; no bytes of large files move."""
    wanted = {path: file for path, file in branch.files.items() if path not in NOT_COMPARED}
    copies = [path for path, file in wanted.items() if main.get(path) != file]
    attributes = branch.files.get(ATTRIBUTES_NAME)
    if copies and attributes is not None and main.get(ATTRIBUTES_NAME) != attributes:
        copies.append(ATTRIBUTES_NAME)
    return Changes(
        adds={} if move.card is None else {CARD_NAME: move.card.encode()},
        copies=dict.fromkeys(copies, branch.commit),
        deletes=frozenset(path for path in move.released if path in main and path not in wanted),
    )


def differences(files: Mapping[str, LocalFile], remote: Mapping[str, RemoteFile]) -> list[str]:
    """What keeps a branch from holding just these files, one phrase each; cards and attributes are not looked at."""
    wanted = {path: file for path, file in files.items() if path not in NOT_COMPARED}
    there = {path: file for path, file in remote.items() if path not in NOT_COMPARED}
    missing = [f"{path} is missing" for path in sorted(wanted.keys() - there.keys())]
    more = [f"{path} is not of this milestone" for path in sorted(there.keys() - wanted.keys())]
    other = [
        f"{path} differs" for path in sorted(wanted.keys() & there.keys()) if not wanted[path].is_held_as(there[path])
    ]
    return [*other, *missing, *more]


def _require_own(export: LocalExport, remote: RemoteState) -> None:
    branch = remote.milestones.get(export.label)
    if branch is not None and (found := differences(export.files, branch.files)):
        raise HubError(
            f"branch {export.label} of {remote.name} exists with other content ({'; '.join(found[:3])}): it is left as "
            "it is, and so is main. Remove the branch if it is to be replaced, or give another --repo."
        )


def _plan_main(newest: str, exports: Sequence[LocalExport], remote: RemoteState, card: str) -> list[Action]:
    """What ``main`` needs to become the newest milestone."""
    local = next((export for export in exports if export.label == newest), None)
    wanted = local.files.keys() if local is not None else remote.milestones[newest].files.keys() - NOT_COMPARED
    there = {path: file for path, file in remote.main.files.items() if path not in NOT_COMPARED}
    released = frozenset(path for path, file in there.items() if _is_of_a_milestone(path, file, exports, remote))
    strange = [path for path in there.keys() - released if path in wanted or path.endswith(_LOADED)]
    if strange:
        raise HubError(
            f"main of {remote.name} holds files that are of no milestone of this run "
            f"({', '.join(sorted(strange)[:3])}): it is left as it is. Remove them from main "
            "if they are to go, or give another --repo."
        )
    new_card = card if _is_due(remote.main.card, card) else None
    if all(path in there for path in wanted) and not any(path not in wanted for path in released):
        same = (
            not differences(local.files, {path: there[path] for path in wanted})
            if local is not None
            else all(there[path] == remote.milestones[newest].files[path] for path in wanted)
        )
        if same:
            return [] if new_card is None else [UpdateCard(MAIN, new_card)]
    return [MoveMain(newest, new_card, released)]


def _is_of_a_milestone(path: str, file: RemoteFile, exports: Sequence[LocalExport], remote: RemoteState) -> bool:
    return any(branch.files.get(path) == file for branch in remote.milestones.values()) or any(
        path in export.files and export.files[path].is_held_as(file) for export in exports
    )


def _is_due(there: str | None, card: str) -> bool:
    """Whether a card is to be replaced."""
    return there is None or (there != card and may_replace(there))
