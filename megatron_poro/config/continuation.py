"""What may differ between a checkpoint's settings and those of the run that goes on from it.

Each key belongs to one of three kinds. What defines the run (:func:`megatron_poro.config.identity.identity`) can never
differ: the run would silently become another one. What changes how it learns from here on (``optimizer`` and
``schedule``) may differ where ``resume.accept`` says that it is meant. Everything else only changes how the same thing
is computed, kept or reported, and always may. Whatever differs, the new value is the one that counts from here on.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from megatron_poro.config.fields import REQUIRED, plain, walk
from megatron_poro.config.identity import ABSENT, Difference, flatten, flatten_values, identity
from megatron_poro.config.run import TrainConfig

OPTIMIZER_GROUPS = "optimizer.groups"
"""Stands for the names of the parameters that are decayed: no key of a config, but compared and accepted like one."""

_ACCEPTABLE_SECTIONS = ("optimizer.", "schedule.")
_OF_THIS_START = "resume."


@dataclass(frozen=True)
class Continuation:
    """The settings in which a run differs from the checkpoint it goes on from; left is the checkpoint's.

    Attributes:
        defining: of what the run is; never allowed.
        to_accept: of how it learns, and ``resume.accept`` does not name them.
        accepted: of how it learns, named by ``resume.accept``.
        free: all others.
    """

    defining: tuple[Difference, ...] = ()
    to_accept: tuple[Difference, ...] = ()
    accepted: tuple[Difference, ...] = ()
    free: tuple[Difference, ...] = ()


def compare_settings(
    saved_config: Mapping[str, Any],
    saved_identity: Mapping[str, Any],
    config: TrainConfig,
    *,
    others: Sequence[Difference] = (),
) -> Continuation:
    """Sorts every difference between the settings in a checkpoint and those of a run.

    A section that the checkpoint does not have is not compared: an imported one knows its model only. A key that only
    this release knows had its default.

    Args:
        saved_config: the resolved config in the checkpoint, as nested mappings; it may be of another release.
        saved_identity: the defining values in the checkpoint.
        config: of the run.
        others: further differences of how it learns, such as :data:`OPTIMIZER_GROUPS`.
    """
    current = {key: value for key, value in flatten(config).items() if _section(key) in saved_config}
    saved = flatten_values(saved_config)
    defaults = {key: plain(field.default) for key, field in walk() if field.default != REQUIRED}
    defining = differing_values(saved_identity, identity(config))
    settled = {*saved_identity, *identity(config)}
    asked: list[Difference] = [*others]
    free: list[Difference] = []
    for key in (*current, *(key for key in saved if key not in current)):
        pair = Difference(key, saved.get(key, defaults.get(key, ABSENT)), current.get(key, ABSENT))
        if pair.left != pair.right and key not in settled and not key.startswith(_OF_THIS_START):
            (asked if key.startswith(_ACCEPTABLE_SECTIONS) else free).append(pair)
    is_accepted = [any(fnmatchcase(pair.key, pattern) for pattern in config.resume.accept) for pair in asked]
    return Continuation(
        defining=tuple(defining),
        to_accept=tuple(pair for pair, accepted in zip(asked, is_accepted, strict=True) if not accepted),
        accepted=tuple(pair for pair, accepted in zip(asked, is_accepted, strict=True) if accepted),
        free=tuple(free),
    )


def differing_values(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[Difference]:
    """Values of a run's identity that are not the same in a checkpoint and in the run that asks for it.

    A key that only one of them knows is not compared: it belongs to an earlier or a later release, or the checkpoint
    was imported and knows its model only. An element that a list lost or gained is a difference.
    """
    known = {_list_of(key) for key in saved} & {_list_of(key) for key in current}
    pairs = [
        Difference(key, saved.get(key, ABSENT), current.get(key, ABSENT))
        for key in (*saved, *(key for key in current if key not in saved))
        if _list_of(key) in known
    ]
    return [pair for pair in pairs if pair.left != pair.right]


def acceptable_keys(defining: Collection[str]) -> list[str]:
    """What ``resume.accept`` may name: how a run learns, without the ``defining`` keys among them."""
    keys = [key for key, _ in walk() if key.startswith(_ACCEPTABLE_SECTIONS) and key not in defining]
    return [*keys, OPTIMIZER_GROUPS]


def _section(key: str) -> str:
    return key.partition(".")[0]


def _list_of(key: str) -> str:
    """The list that an element's key belongs to (``data.train`` of ``data.train[0].name``), or the key itself."""
    return key.partition("[")[0]
