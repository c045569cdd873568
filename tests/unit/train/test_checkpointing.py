"""How a save is begun and brought further at a step boundary, and what its failure means to the run."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_poro.errors import CheckpointError, UnsavableError
from megatron_poro.train import checkpointing
from megatron_poro.train.checkpointing import advance_save, save
from megatron_poro.train.control import Notice


def run_that_saves(step: int | None) -> Any:
    """As much of a run as is asked; counts how often its save was brought further."""
    saver = SimpleNamespace(step=step, advanced=0)

    def advance() -> None:
        saver.advanced += 1

    saver.advance = advance
    return SimpleNamespace(saver=saver, tracker=SimpleNamespace(saving=nullcontext))


def test_a_save_goes_on_only_when_no_process_writes_any_more() -> None:
    run = run_that_saves(3)
    advance_save(run, Notice.WRITING | Notice.SAVE_FILE)
    assert run.saver.advanced == 0, "it would wait for the disk of another process"
    advance_save(run, Notice.SAVE_FILE)
    assert run.saver.advanced == 1


def test_without_a_save_nothing_is_brought_further() -> None:
    run = run_that_saves(None)
    advance_save(run, Notice(0))
    assert run.saver.advanced == 0


def run_whose_save_fails(error: CheckpointError) -> Any:
    """As much of a run as is asked; counts the failures that were noted."""
    tracker = SimpleNamespace(saving=nullcontext, failures=0)

    def record() -> None:
        tracker.failures += 1

    def start(*_: object, **__: object) -> None:
        raise error

    tracker.record_failed_save = record
    return SimpleNamespace(
        progress=SimpleNamespace(step=3),
        saved_step=0,
        saver=SimpleNamespace(step=None, finish=lambda: None, start=start),
        tracker=tracker,
        config=SimpleNamespace(checkpoint=SimpleNamespace(asynchronous=True)),
        engine=None,
        tokenizer=None,
    )


def test_a_save_that_a_later_one_can_repair_is_counted_and_one_that_none_can_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpointing, "_state", lambda run: None)
    full = run_whose_save_fails(CheckpointError("the disk is full."))
    save(full)
    assert full.tracker.failures == 1
    broken = run_whose_save_fails(UnsavableError("a value is not finite."))
    with pytest.raises(UnsavableError, match="a value is not finite"):
        save(broken)
    assert broken.tracker.failures == 0
