"""A run that is taken back goes on as the same run with another lineage; and what a person asks of one that trains."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.cli.main import main as poro
from megatron_poro.cli.train import main
from megatron_poro.data.batch import Batch
from megatron_poro.engine.engine import StepResult
from megatron_poro.engine.local import LocalEngine
from megatron_poro.metrics import names
from megatron_poro.train.exit_code import ExitCode
from tests.integration.toy import BATCH, STEPS, RunOnDisk, ToyCorpora, assert_same_values

OFTEN = ("checkpoint.every_steps=2", "checkpoint.keep_last=10")


def meta(run: RunOnDisk, step: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run.store.path(step) / "meta.json").read_text())
    return record


def ask_before_step(monkeypatch: pytest.MonkeyPatch, step: int, ask: Callable[[], None]) -> None:
    original = LocalEngine.train_step

    def train_step(self: LocalEngine, microbatches: list[Batch], **options: Any) -> StepResult:
        if options["consumed_samples"] == (step - 1) * BATCH:
            ask()
        return original(self, microbatches, **options)

    monkeypatch.setattr(LocalEngine, "train_step", train_step)


def test_rewound_run_is_the_same_run_and_ends_bitwise_where_it_would_have(corpora: ToyCorpora, tmp_path: Path) -> None:
    arguments = corpora.arguments(tmp_path, *OFTEN)
    main(arguments)
    run = RunOnDisk(tmp_path)
    curve, run_id = run.curve(), meta(run, STEPS)["run_id"]
    assert poro(["rewind", str(run.folder), "--to", "4", "--reason", "to see"]) == 0
    assert run.steps() == [2, 4]
    assert main(arguments) == ExitCode.FINISHED
    assert run.curve() == curve
    assert [line[names.LINEAGE.key] for line in run.lines()] == [0] * 4 + [1] * 4
    assert [meta(run, step)["lineage"] for step in run.steps()] == [0, 0, 1, 1]
    assert {meta(run, step)["run_id"] for step in run.steps()} == {run_id}
    abandoned = RunOnDisk(run.folder / "abandoned", name="1")
    assert abandoned.curve() == curve[4:]
    assert abandoned.steps() == [6, 8]
    assert_same_values(abandoned, run, STEPS)


def test_skipped_steps_are_not_learned_from_and_are_written_down(corpora: ToyCorpora, tmp_path: Path) -> None:
    arguments = corpora.arguments(tmp_path, *OFTEN)
    main(arguments)
    run = RunOnDisk(tmp_path)
    poro(["rewind", str(run.folder), "--to", "4", "--skip", "5:6"])
    assert main([*arguments, "run.stop_after_steps=7"]) == ExitCode.FINISHED
    state = meta(run, 7)
    assert state["skipped_steps"] == [5, 6]
    assert (state["step"], state["optimizer_step"], state["consumed_samples"]) == (7, 5, 7 * BATCH)
    assert meta(run, 4)["skipped_steps"] == []
    assert main(arguments) == ExitCode.FINISHED
    assert meta(run, STEPS)["skipped_steps"] == [5, 6], "also by the job after the next"


def test_run_that_has_lost_its_checkpoints_does_not_begin_again_by_itself(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = corpora.arguments(tmp_path, *OFTEN)
    main([*arguments, "run.stop_after_steps=4"])
    run = RunOnDisk(tmp_path)
    lines = run.lines()
    shutil.rmtree(run.store.folder)
    assert main(arguments) == ExitCode.BAD_INPUT
    assert "does not begin again at step 0 by itself" in capsys.readouterr().err
    assert run.lines() == lines
    assert poro(["rewind", str(run.folder), "--to", "0"]) == 0
    assert main(arguments) == ExitCode.FINISHED


def test_stop_file_saves_and_ends_without_asking_for_another_job(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunOnDisk(tmp_path)
    with monkeypatch.context() as patch:
        ask_before_step(patch, 3, (run.folder / "control" / "stop").touch)
        assert main(corpora.arguments(tmp_path)) == ExitCode.FINISHED
    assert run.steps() == [3]
    assert list((run.folder / "control").iterdir()) == []
    assert main(corpora.arguments(tmp_path)) == ExitCode.FINISHED
    assert [line[names.STEP.key] for line in run.lines()] == list(range(1, STEPS + 1))


def test_save_file_saves_and_the_run_goes_on(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunOnDisk(tmp_path)
    ask_before_step(monkeypatch, 3, (run.folder / "control" / "save").touch)
    assert main(corpora.arguments(tmp_path)) == ExitCode.FINISHED
    assert run.steps() == [3, STEPS]
    assert list((run.folder / "control").iterdir()) == []
