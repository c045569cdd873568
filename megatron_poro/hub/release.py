"""A run and a repository side by side: the plan that brings them together, and how far they are apart."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_poro.checkpoint.export_report import REPORT_NAME
from megatron_poro.checkpoint.locating import CHECKPOINTS_FOLDER
from megatron_poro.checkpoint.state import META_NAME, RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.errors import CheckpointError, HubError
from megatron_poro.hub.card import Subject, render
from megatron_poro.hub.details import CardDetails
from megatron_poro.hub.exports import LocalExport, chosen, local_exports
from megatron_poro.hub.facts import RunFacts, read_run, require_run
from megatron_poro.hub.plan import NOT_COMPARED, Action, RemoteState, cards_left_alone, differences, labels_after, plan
from megatron_poro.hub.publishing import observe
from megatron_poro.hub.repository import MAIN, Remote
from megatron_poro.units import parse_count


@dataclass(frozen=True)
class Release:
    """What there is to do.

    Attributes:
        actions: in order.
        labels: milestones that have a branch then, oldest first.
        foreign_cards: branches whose card a person has written; it is left.
        missing: milestones of the schedule that have no branch even then.
    """

    actions: tuple[Action, ...]
    labels: Sequence[str]
    foreign_cards: Sequence[str]
    missing: Sequence[str]


@dataclass(frozen=True)
class Standing:
    """A milestone here and there.

    Attributes:
        label: its name.
        step: optimizer steps.
        tokens: tokens consumed.
        has_checkpoint: whether its checkpoint is in the run folder.
        has_export: whether its export is.
        branch: ``published``, ``interrupted``, ``other content``, ``none``; ``present`` if there is nothing here to
            compare it with.
        is_main: whether ``main`` holds it.
    """

    label: str
    step: int
    tokens: int
    has_checkpoint: bool
    has_export: bool
    branch: str
    is_main: bool


def prepare(
    run: Path,
    remote: Remote,
    *,
    details: CardDetails,
    wanted: Sequence[str] | None = None,
    accept_unproven: bool = False,
) -> Release:
    """Compares a run with a repository and plans.

    Args:
        run: the run folder.
        remote: the repository.
        details: for the cards.
        wanted: labels to publish; None takes every export there is.
        accept_unproven: whether an export that was not compared with its checkpoint may be published.

    Raises:
        CheckpointError: if an export is missing, damaged or not proven.
        ConfigError: if the run's config or the card's template is wrong.
        DataError: if metrics or evaluations cannot be read.
        HubError: if the repository refuses, or holds what is not this run's.
    """
    require_run(run)
    exports = chosen(local_exports(run), wanted, run)
    for export in exports:
        if not export.is_proven and not accept_unproven:
            raise CheckpointError(
                f"export {export.folder} was never compared with its checkpoint: export it again without --no-parity, "
                "or publish with --unproven."
            )
    state = observe(remote)
    facts = read_run(run, {export.label: (export.step, export.tokens) for export in exports})
    cards = _cards(facts, exports, state, remote, details)
    labels = labels_after(exports, state)
    return Release(
        actions=plan(exports, state, cards),
        labels=labels,
        foreign_cards=cards_left_alone(state, cards),
        missing=[label for label in facts.milestones if label not in labels],
    )


def standings(run: Path, remote: Remote) -> list[Standing]:
    """Every milestone of a run against the branches of a repository, oldest first.

    Raises:
        CheckpointError: if an export's report is damaged.
        ConfigError: if the run's config is wrong.
        HubError: if the repository refuses.
    """
    require_run(run)
    exports = {export.label: export for export in local_exports(run)}
    state = observe(remote)
    facts = read_run(run, {export.label: (export.step, export.tokens) for export in exports.values()})
    saved = _saved_milestones(run)
    labels = sorted({*facts.milestones, *state.milestones, *state.staging}, key=parse_count)
    return [
        Standing(
            label=label,
            step=facts.milestones[label].step if label in facts.milestones else 0,
            tokens=facts.milestones[label].tokens if label in facts.milestones else parse_count(label),
            has_checkpoint=label in saved,
            has_export=label in exports,
            branch=_branch_word(label, exports.get(label), state),
            is_main=_is_main(label, state),
        )
        for label in labels
    ]


def _cards(
    facts: RunFacts, exports: Sequence[LocalExport], state: RemoteState, remote: Remote, details: CardDetails
) -> dict[str, str]:
    """The card of each milestone to publish, which lists those before it, and of ``main``, which lists all."""
    labels = labels_after(exports, state)
    if not labels:
        return {}
    reports: dict[str, Mapping[str, Any]] = {export.label: export.report for export in exports}

    def card(label: str, listed: Sequence[str]) -> str:
        return render(Subject(remote.name, facts, details, label, reports[label], listed))

    cards = {export.label: card(export.label, labels[: labels.index(export.label) + 1]) for export in exports}
    newest = labels[-1]
    if newest not in reports:
        reports[newest] = _published_report(remote, newest, state)
    if newest not in facts.milestones:
        raise HubError(
            f"{remote.name} has a branch {newest}, which is no milestone of this run: main would have to go to it. "
            "Give another --repo, or remove the branch."
        )
    cards[MAIN] = card(newest, labels)
    return cards


def _published_report(remote: Remote, label: str, state: RemoteState) -> Mapping[str, Any]:
    """The report of a milestone whose export is no longer here."""
    if REPORT_NAME not in state.milestones[label].files:
        raise HubError(
            f"branch {label} of {remote.name} was not made by poro publish: it has no {REPORT_NAME}. Give another "
            "--repo, or remove the branch."
        )
    report: Mapping[str, Any] = json.loads(remote.read(REPORT_NAME, revision=state.milestones[label].commit))
    return report


def _saved_milestones(run: Path) -> set[str]:
    store = CheckpointStore(run / CHECKPOINTS_FOLDER)
    found = set()
    for step in store.steps():
        try:
            milestone = RunState.read(store.path(step) / META_NAME).milestone
        except CheckpointError:
            continue
        if milestone is not None:
            found.add(milestone)
    return found


def _branch_word(label: str, export: LocalExport | None, state: RemoteState) -> str:
    branch = state.milestones.get(label)
    if branch is None:
        return "interrupted" if label in state.staging else "none"
    if export is None:
        return "present"
    return "other content" if differences(export.files, branch.files) else "published"


def _is_main(label: str, state: RemoteState) -> bool:
    branch = state.milestones.get(label)
    if branch is None:
        return False
    return all(state.main.files.get(path) == file for path, file in branch.files.items() if path not in NOT_COMPARED)
