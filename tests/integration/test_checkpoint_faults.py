"""What happens to a training when its saves fail, and a short form of each campaign against checkpoints."""

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.checkpoint import manifest, saving
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.checkpoint.writing import WritePlan
from megatron_poro.cli.train import main
from megatron_poro.engine.local import LocalEngine
from megatron_poro.errors import CheckpointError, UnsavableError
from megatron_poro.metrics import names
from megatron_poro.train.exit_code import ExitCode
from tests.faults import (
    checkpoint_damage,
    checkpoint_death,
    checkpoint_disk,
    checkpoint_layouts,
    checkpoint_resume,
)
from tests.faults.tally import Budget, Tally
from tests.integration.toy import BATCH, STEPS, RunOnDisk, ToyCorpora, assert_same_values, launch


def failed_saves(run: RunOnDisk) -> list[int]:
    """Steps of the lines that count a save that failed."""
    return [line[names.STEP.key] for line in run.lines() if line.get(names.FAILED_CHECKPOINTS.key)]


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_save_that_fails_is_told_and_the_run_goes_on(
    corpora: ToyCorpora,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asynchronous: str,
) -> None:
    original = CheckpointStore.commit

    def failing(store: CheckpointStore, staging: Path, entries: Any) -> Path:
        if staging.name.startswith("step_00000004"):
            raise OSError(28, "No space left on device")
        return original(store, staging, entries)

    monkeypatch.setattr(CheckpointStore, "commit", failing)
    arguments = corpora.arguments(tmp_path, "checkpoint.every_steps=2", f"checkpoint.asynchronous={asynchronous}")
    assert main([*arguments, "checkpoint.keep_last=9"]) == ExitCode.FINISHED
    run = RunOnDisk(tmp_path)
    assert run.steps() == [2, 6, 8]
    assert len(failed_saves(run)) == 1
    assert failed_saves(run)[0] in (5, 6, 7)  # when it was noticed: the save of step 6 waits for it at the latest
    told = capsys.readouterr().err
    assert "step_00000004 was not written: No space left on device. It needs" in told
    assert "The run goes on" in told


def test_a_run_whose_last_step_cannot_be_saved_does_not_end_well(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = CheckpointStore.stage

    def failing(store: CheckpointStore, step: int, needed: int) -> Path:
        if step == STEPS:
            raise CheckpointError("no room for the last one")
        return original(store, step, needed)

    monkeypatch.setattr(CheckpointStore, "stage", failing)
    assert main(corpora.arguments(tmp_path, "checkpoint.every_steps=3")) == ExitCode.BAD_INPUT
    assert "poro train: no room for the last one" in capsys.readouterr().err
    assert RunOnDisk(tmp_path).steps() == [3, 6]
    monkeypatch.undo()
    assert main(corpora.arguments(tmp_path, "checkpoint.every_steps=3")) == ExitCode.FINISHED
    assert RunOnDisk(tmp_path).steps() == [6, 8]


def test_values_that_no_later_save_repairs_end_the_run(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_finite(fragments: object, *, step: int) -> None:
        raise UnsavableError(f"master.embedding.weight is not finite at step {step}")

    monkeypatch.setattr(saving, "_require_finite", not_finite)
    assert main(corpora.arguments(tmp_path, "checkpoint.every_steps=3")) == ExitCode.BAD_INPUT
    assert "is not finite at step 3" in capsys.readouterr().err
    assert RunOnDisk(tmp_path).steps() == []


def test_a_signal_during_a_save_finishes_it_and_saves_again(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save of step 2 is held back until the signal comes, in step 3."""
    opened = threading.Event()
    write, train_step = WritePlan.write, LocalEngine.train_step

    def held(plan: WritePlan, folder: Path) -> Any:
        assert opened.wait(60)
        return write(plan, folder)

    def signalled(engine: LocalEngine, microbatches: Any, **options: Any) -> Any:
        if options["consumed_samples"] == 2 * BATCH:
            os.kill(os.getpid(), signal.SIGTERM)
            opened.set()
        return train_step(engine, microbatches, **options)

    monkeypatch.setattr(WritePlan, "write", held)
    monkeypatch.setattr(LocalEngine, "train_step", signalled)
    arguments = corpora.arguments(tmp_path / "parts", "checkpoint.every_steps=2", "checkpoint.keep_last=9")
    assert main(arguments) == ExitCode.STOPPED
    parts = RunOnDisk(tmp_path / "parts")
    assert parts.steps() == [2, 3]
    assert all(manifest.problems(parts.store.path(step)) == [] for step in parts.steps())
    monkeypatch.undo()
    assert main(arguments) == ExitCode.FINISHED
    main(corpora.arguments(tmp_path / "whole"))
    assert_same_values(parts, RunOnDisk(tmp_path / "whole"), STEPS)


def test_a_writer_that_fails_on_one_process_is_known_to_all_and_none_waits(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = WritePlan.write
    met: list[Path] = []

    def failing(plan: WritePlan, folder: Path) -> Any:
        if os.environ["RANK"] == "1" and not met:
            met.append(folder)
            raise OSError(5, "Input/output error")
        return original(plan, folder)

    monkeypatch.setattr(WritePlan, "write", failing)
    arguments = corpora.arguments(tmp_path, "engine=deepspeed", "checkpoint.every_steps=3", "parallel.data=2")
    assert launch(arguments, world=2) == [ExitCode.FINISHED, ExitCode.FINISHED]
    run = RunOnDisk(tmp_path)
    assert run.steps() == [6, 8]
    assert len(failed_saves(run)) == 1


def assert_held(tally: Tally, trials: int) -> None:
    """Every trial of a campaign went well, and there were so many."""
    assert tally.failures == []
    assert tally.trials == trials == sum(tally.kinds.values())


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    assert_held(checkpoint_damage.campaign(Budget(trials=80), random.Random(1), tmp_path), 80)


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
@pytest.mark.parametrize("way", checkpoint_death.WAYS)
def test_death_in_a_save_leaves_the_old_or_the_new(tmp_path: Path, way: str, power: bool) -> None:
    """Five of its operations, and the time after the last; the campaign goes through all of them."""
    deaths = checkpoint_death.Deaths(way, power=power, folder=tmp_path)
    rng = random.Random(1)
    numbers = [*sorted(rng.sample(range(deaths.count - 1), 5)), deaths.count - 1]
    found = [deaths.trial(number, rng) for number in numbers]
    assert found[-1].endswith("after the last, new loaded")


def test_a_disk_that_refuses_an_operation_costs_no_more_than_a_checkpoint(tmp_path: Path) -> None:
    assert_held(checkpoint_disk.campaign(Budget(trials=3), random.Random(1), tmp_path), 3)


def test_a_run_resumes_from_each_of_its_steps_bitwise(tmp_path: Path) -> None:
    tally = checkpoint_resume.campaign(Budget(trials=9), random.Random(1), tmp_path, steps=10)
    assert_held(tally, 9)
    assert tally.facts["steps resumed from"] == 9


def test_a_trained_grid_arrives_at_another_layout(tmp_path: Path) -> None:
    assert_held(checkpoint_layouts.campaign(Budget(trials=2), random.Random(1), tmp_path, largest=2), 2)


def test_the_campaign_of_layouts_has_all_ordered_pairs() -> None:
    assert len(checkpoint_layouts.layouts(4)) == 10
    assert len(checkpoint_layouts.layouts(8)) == 20
