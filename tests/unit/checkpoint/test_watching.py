"""The watch: every milestone in order, once, whole; whatever else happens to the run meanwhile."""

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from megatron_poro.checkpoint.hf_export import UnprovenError
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.checkpoint.watching import LOCK_NAME, KeptMilestone, Watch
from megatron_poro.config.run import ExportConfig
from megatron_poro.errors import CheckpointError
from tests.unit.checkpoint.bloom_checkpoint import bloom_state

STEPS = {"2k": 31, "4k": 62, "6k": 93, "6400": 100}
"""The milestones of a run of 6,400 tokens, 64 a step, with one each 2,000."""


class Exports:
    """Stands for the exporter: notes its calls, makes the folder, fails where it is told to."""

    def __init__(self, failing: dict[str, list[Exception]] | None = None) -> None:
        self.calls: list[str] = []
        self.failing = failing or {}

    def __call__(self, milestone: KeptMilestone) -> None:
        self.calls.append(milestone.label)
        if self.failing.get(milestone.label):
            raise self.failing[milestone.label].pop(0)
        milestone.output.mkdir()


def save(run: Path, *labels: str) -> None:
    """As much of a checkpoint as the watch looks at."""
    for label in labels:
        step = STEPS.get(label, 50)
        folder = CheckpointStore(run / "checkpoints").path(step)
        folder.mkdir(parents=True)
        state = bloom_state(step, milestone=label if label in STEPS else None, export=ExportConfig(every_tokens=2000))
        (folder / "meta.json").write_bytes(state.encode())


def watch(run: Path, export: Exports, events: Iterable[Callable[[], object]] = ()) -> Watch:
    """Watches a run in which one event happens in each pause; there is none after the last."""
    coming = iter(events)
    watching = Watch(CheckpointStore(run / "checkpoints"), run / "exports", export)
    watching.run(lambda: next(coming)())
    return watching


def test_milestones_are_exported_as_they_appear(tmp_path: Path) -> None:
    export = Exports()
    events = [lambda label=label: save(tmp_path, label) for label in ("2k", "no milestone", "4k", "6k", "6400")]
    assert not watch(tmp_path, export, events).failed
    assert export.calls == ["2k", "4k", "6k", "6400"]


def test_those_that_fell_due_in_an_outage_are_made_in_order(tmp_path: Path) -> None:
    save(tmp_path, "6k", "2k", "4k")
    (tmp_path / "exports" / "2k").mkdir(parents=True)
    export = Exports()
    watch(tmp_path, export, [lambda: save(tmp_path, "6400")])
    assert export.calls == ["4k", "6k", "6400"]


def test_it_ends_at_once_when_all_is_done(tmp_path: Path) -> None:
    save(tmp_path, *STEPS)
    watch(tmp_path, Exports())
    export = Exports()
    watch(tmp_path, export)
    assert export.calls == []
    assert sorted(path.name for path in (tmp_path / "exports").iterdir()) == sorted(STEPS)


def test_it_also_ends_if_the_last_checkpoint_is_gone_but_exported(tmp_path: Path) -> None:
    save(tmp_path, *STEPS)
    watch(tmp_path, Exports())
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000100")
    watch(tmp_path, Exports())


def test_one_that_fails_is_told_and_tried_again_with_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export = Exports({"2k": [CheckpointError("no room.")]})
    events = [
        lambda: save(tmp_path, "2k"),
        lambda: None,  # nothing new: not tried again
        lambda: save(tmp_path, "4k"),
        lambda: save(tmp_path, "6k", "6400"),
    ]
    assert not watch(tmp_path, export, events).failed
    assert export.calls == ["2k", "2k", "4k", "6k", "6400"]
    assert "milestone 2k was not exported: no room." in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


def test_one_that_is_not_proven_is_not_made_again_and_stops_no_other(tmp_path: Path) -> None:
    export = Exports({"2k": [UnprovenError("not the model.")]})
    watching = watch(tmp_path, export, [lambda label=label: save(tmp_path, label) for label in STEPS])
    assert export.calls == ["2k", "4k", "6k", "6400"]
    assert {label: str(error) for label, error in watching.failed.items()} == {"2k": "not the model."}


def test_a_last_one_that_fails_ends_the_watch_all_the_same(tmp_path: Path) -> None:
    save(tmp_path, *STEPS)
    assert list(watch(tmp_path, Exports({"6400": [CheckpointError("no room.")]})).failed) == ["6400"]


def test_checkpoints_may_vanish_between_the_look_and_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, *STEPS)
    there = CheckpointStore.steps
    monkeypatch.setattr(CheckpointStore, "steps", lambda store: [200, *there(store)])
    export = Exports()
    watch(tmp_path, export)
    assert export.calls == list(STEPS)
    assert caplog.text == ""


def test_a_checkpoint_that_cannot_be_read_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, "2k", "4k")
    (tmp_path / "checkpoints" / "step_00000031" / "meta.json").write_bytes(b"{")
    export = Exports()
    watch(tmp_path, export, [lambda: None, lambda: save(tmp_path, "6k", "6400")])
    assert export.calls == ["4k", "6k", "6400"]
    assert caplog.text.count("meta.json is damaged") == 1
    assert "milestone 2k has neither a checkpoint nor an export" in caplog.text


def test_an_import_has_no_plan_and_is_waited_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import dataclasses

    folder = tmp_path / "checkpoints" / "step_00000000"
    folder.mkdir(parents=True)
    state = dataclasses.replace(bloom_state(0), config="model: {family: bloom}\n")
    (folder / "meta.json").write_bytes(state.encode())
    watch(tmp_path, Exports(), [lambda: None, lambda: save(tmp_path, *STEPS)])
    assert caplog.text.count("step_00000000 does not say when its run ends") == 1


def test_a_second_watch_on_the_same_run_is_refused(tmp_path: Path) -> None:
    def second() -> None:
        with pytest.raises(CheckpointError, match="is being watched by another"):
            watch(tmp_path, Exports())
        save(tmp_path, *STEPS)

    watch(tmp_path, Exports(), [second])
    assert not (tmp_path / "exports" / LOCK_NAME).exists()


def test_a_lock_that_a_killed_watch_left_is_no_lock(tmp_path: Path) -> None:
    save(tmp_path, *STEPS)
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / LOCK_NAME).touch()
    watch(tmp_path, Exports())
