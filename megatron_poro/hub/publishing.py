"""Looks at a repository and does what a plan says; every step may be cut short at any moment and be taken again.

A plan is carried out from its first action to its last. After a kill the next plan is made from what the server holds
then, so no record of progress is kept anywhere: large files that have arrived are not sent again, a branch that has its
name is complete, and ``main`` is either the old milestone or the new one.
"""

from collections.abc import Callable, Mapping, Sequence

from megatron_poro.errors import HubError, HubUnavailableError
from megatron_poro.hub.exports import LocalFile, is_label
from megatron_poro.hub.plan import (
    ATTRIBUTES_NAME,
    CARD_NAME,
    STAGING_SUFFIX,
    Action,
    Branch,
    CreateRepository,
    MoveMain,
    PublishBranch,
    RemoteState,
    RemoveStaging,
    UpdateCard,
    changes_of_main,
    differences,
    staging_name,
)
from megatron_poro.hub.repository import MAIN, BranchMovedError, Changes, Remote, RemoteFile


def observe(remote: Remote) -> RemoteState:
    """What a repository holds now.

    Raises:
        HubError: if it refuses to say.
        HubUnavailableError: if it cannot be reached.
    """
    heads = remote.branches()
    if heads is None:
        return RemoteState(remote.name)
    labels = [name for name in heads if is_label(name)]
    staging = (name.removesuffix(STAGING_SUFFIX) for name in heads if name.endswith(STAGING_SUFFIX))
    return RemoteState(
        remote.name,
        exists=True,
        main=_branch(remote, heads[MAIN]) if MAIN in heads else Branch("", {}),
        milestones={label: _branch(remote, heads[label]) for label in labels},
        staging=frozenset(label for label in staging if is_label(label)),
    )


def carry_out(
    actions: Sequence[Action], remote: Remote, *, private: bool = False, say: Callable[[str], None] = lambda text: None
) -> None:
    """Does what a plan says.

    Args:
        actions: the plan.
        remote: the repository it was made for.
        private: visibility of a repository that is made.
        say: is told each action when it is done.

    Raises:
        HubError: if the repository refuses, or somebody else changes it meanwhile.
        HubUnavailableError: if it cannot be reached; the same plan can be made again later.
        CheckpointError: if an export is damaged.
    """
    for action in actions:
        match action:
            case CreateRepository():
                remote.create(private=private)
            case PublishBranch():
                _publish_branch(remote, action)
            case RemoveStaging():
                remote.delete_branch(staging_name(action.label))
            case UpdateCard():
                _update_card(remote, action)
            case MoveMain():
                _move_main(remote, action)
        say(str(action))


def _branch(remote: Remote, commit: str) -> Branch:
    files = remote.files(commit)
    card = remote.read(CARD_NAME, revision=commit).decode(errors="replace") if CARD_NAME in files else None
    return Branch(commit, files, card)


def _publish_branch(remote: Remote, action: PublishBranch) -> None:
    label, staging = action.export.label, staging_name(action.export.label)
    action.export.require_intact()
    commit = _stage(remote, staging, action.files)
    remote.create_branch(label, commit=commit)
    if _head(remote, label) != commit:
        raise HubError(
            f"branch {label} of {remote.name} was made by somebody else while it was uploaded; main is left as it is. "
            "Run the command again to compare it."
        )
    remote.delete_branch(staging)


def _stage(remote: Remote, staging: str, files: Mapping[str, LocalFile]) -> str:
    """Brings files to a branch that nobody reads and verifies them there; returns the commit that holds them."""
    if staging not in (remote.branches() or {}):
        remote.create_branch(staging, commit=remote.root_commit())
    parent = _head(remote, staging)
    there = remote.files(parent)
    changes = Changes(
        adds={
            path: file.source for path, file in files.items() if path not in there or not file.is_held_as(there[path])
        },
        deletes=frozenset(there.keys() - files.keys() - {ATTRIBUTES_NAME}),
    )
    commit = _commit(remote, staging, changes, message=f"Add {staging.removesuffix(STAGING_SUFFIX)}", parent=parent)
    if found := _unverified(files, remote.files(commit)):
        remote.delete_branch(staging)
        raise HubUnavailableError(
            f"what {remote.name} holds of {staging.removesuffix(STAGING_SUFFIX)} is not what was uploaded "
            f"({'; '.join(found[:3])}): the upload was thrown away and no branch was changed. Run the command again."
        )
    return commit


def _unverified(files: Mapping[str, LocalFile], there: Mapping[str, RemoteFile]) -> list[str]:
    """All that is wrong with what the server holds, the card included."""
    found = differences(files, there)
    if CARD_NAME in files and not (CARD_NAME in there and files[CARD_NAME].is_held_as(there[CARD_NAME])):
        found.append(f"{CARD_NAME} differs")
    return found


def _update_card(remote: Remote, action: UpdateCard) -> None:
    changes = Changes(adds={CARD_NAME: action.card.encode()})
    commit = _commit(remote, action.branch, changes, message="Update the card", parent=_head(remote, action.branch))
    there = remote.files(commit).get(CARD_NAME)
    if there is None or not LocalFile.of_bytes(action.card.encode()).is_held_as(there):
        raise _moved(remote, action.branch)


def _move_main(remote: Remote, action: MoveMain) -> None:
    parent = _head(remote, MAIN)
    commit = _head(remote, action.label)
    branch = Branch(commit, remote.files(commit))
    changes = changes_of_main(remote.files(parent), branch, action)
    moved = _commit(remote, MAIN, changes, message=f"Point main to {action.label}", parent=parent)
    there = remote.files(moved)
    if any(path != ATTRIBUTES_NAME for path in changes_of_main(there, branch, action).copies) or (
        changes.deletes & there.keys()
    ):
        raise _moved(remote, MAIN)


def _commit(remote: Remote, branch: str, changes: Changes, *, message: str, parent: str) -> str:
    """Makes a commit, unless there is nothing to change; returns where the branch is then.

    A commit whose answer was lost looks like one of somebody else. Who calls this compares files, and so finds out.
    """
    if changes == Changes():
        return parent
    try:
        return remote.commit(branch, changes, message=message, parent=parent)
    except BranchMovedError:
        return _head(remote, branch)


def _head(remote: Remote, branch: str) -> str:
    heads = remote.branches() or {}
    if branch not in heads:
        raise HubUnavailableError(
            f"branch {branch} of {remote.name} was removed while it was needed. Run the command again."
        )
    return heads[branch]


def _moved(remote: Remote, branch: str) -> HubUnavailableError:
    return HubUnavailableError(
        f"branch {branch} of {remote.name} was changed by somebody else meanwhile; it is as they left it. Run the "
        "command again."
    )
