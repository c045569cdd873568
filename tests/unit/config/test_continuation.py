"""Which settings may differ between a checkpoint and the run that goes on from it."""

from typing import Any

import pytest

from megatron_poro.config.continuation import OPTIMIZER_GROUPS, Continuation, acceptable_keys, compare_settings
from megatron_poro.config.fields import plain
from megatron_poro.config.identity import ABSENT, Difference, identity
from megatron_poro.config.validate import validate
from megatron_poro.errors import ConfigError
from tests.unit.config.configs import SMOKE, changed
from tests.unit.config.test_identity import DEFINING, FREE

LEARNING = ("optimizer", "schedule")


def compared(accept: list[str] | None = None, saved: dict[str, Any] | None = None, **values: Any) -> Continuation:
    """The smoke run, with some values changed since its checkpoint."""
    before = changed(SMOKE)
    now = changed(SMOKE, resume__accept=accept or [], **values)
    return compare_settings(plain(before) if saved is None else saved, identity(before), now)


@pytest.mark.parametrize("values", DEFINING, ids=lambda values: next(iter(values)))
def test_what_defines_the_run_is_refused_whatever_is_accepted(values: dict[str, Any]) -> None:
    found = compared(["*"], **values)
    assert len(found.defining) == 1
    assert found.accepted == found.to_accept == ()


@pytest.mark.parametrize("values", FREE, ids=lambda values: next(iter(values)))
def test_how_it_learns_must_be_accepted_and_all_else_is_free(values: dict[str, Any]) -> None:
    key = next(iter(values)).replace("__", ".")
    found = compared(**values)
    assert found.defining == ()
    assert bool(found.to_accept) == key.startswith(LEARNING)
    assert bool(found.free) != key.startswith(LEARNING)
    accepted = compared([key], **values)
    assert accepted.to_accept == ()
    assert accepted.free == found.free
    assert accepted.accepted == found.to_accept


def test_a_difference_shows_the_old_and_the_new_value() -> None:
    (found,) = compared(optimizer__weight_decay=0.3).to_accept
    assert found == Difference("optimizer.weight_decay", 0.1, 0.3)


@pytest.mark.parametrize(
    ("pattern", "accepted"),
    [("optimizer.*", 2), ("optimizer.beta?", 1), ("optimizer.beta1", 1), ("schedule.*", 0), ("optimizer", 0)],
)
def test_a_pattern_accepts_the_keys_it_matches(pattern: str, accepted: int) -> None:
    found = compared([pattern], optimizer__beta1=0.8, optimizer__epsilon=1e-6)
    assert (len(found.accepted), len(found.to_accept)) == (accepted, 2 - accepted)


def test_equal_settings_do_not_differ() -> None:
    assert compared(["optimizer.*"]) == Continuation()


def test_a_key_that_only_this_release_knows_had_its_default() -> None:
    saved = plain(changed(SMOKE))
    del saved["optimizer"]["beta1"]
    assert compared(saved=saved) == Continuation()
    (found,) = compared(saved=saved, optimizer__beta1=0.5).to_accept
    assert (found.left, found.right) == (0.9, 0.5)


def test_a_key_that_only_another_release_knew_is_told() -> None:
    saved = plain(changed(SMOKE))
    saved["metrics"]["colour"] = "blue"
    assert compared(saved=saved).free == (Difference("metrics.colour", "blue", ABSENT),)


def test_a_section_that_an_imported_checkpoint_lacks_is_not_compared() -> None:
    imported = {"model": plain(changed(SMOKE))["model"]}
    assert compared(saved=imported, optimizer__beta1=0.5, checkpoint__every_steps=3) == Continuation()


@pytest.mark.parametrize("pattern", ["optimiser.*", "checkpoint.every_steps", "model.*", ""])
def test_a_pattern_that_matches_nothing_acceptable_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"resume\.accept=.* is no key that could be accepted"):
        validate(changed(SMOKE, resume__accept=[pattern]))


@pytest.mark.parametrize("key", ["run.seed", "schedule.total_tokens", "model.hidden_size"])
def test_accepting_what_defines_the_run_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"defines the run and can never differ"):
        validate(changed(SMOKE, resume__accept=[key]))


def test_the_groups_of_the_optimizer_can_be_accepted_by_name() -> None:
    moved = [Difference(OPTIMIZER_GROUPS, "norm decayed", "norm not decayed")]
    config = changed(SMOKE)
    assert compare_settings(plain(config), identity(config), config, others=moved).to_accept == tuple(moved)
    config = changed(SMOKE, resume__accept=[OPTIMIZER_GROUPS])
    validate(config)
    assert compare_settings(plain(config), identity(config), config, others=moved).accepted == tuple(moved)
    assert OPTIMIZER_GROUPS in acceptable_keys(identity(config))
