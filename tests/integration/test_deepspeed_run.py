"""Whole runs of ``poro train`` on several processes with DeepSpeed, against the local engine and against themselves."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.cli.train import main
from megatron_poro.data import mixture
from megatron_poro.engine.local import LocalEngine
from megatron_poro.errors import DataError
from megatron_poro.metrics import names
from megatron_poro.train import loop
from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.run import Run
from tests.integration.toy import STEPS, TEXTS, RunOnDisk, ToyCorpora, assert_same_values, launch

DEEPSPEED = ("engine=deepspeed", "engine.precision=fp32", "engine.microbatch_samples=2")
GRID = (*DEEPSPEED, "parallel.tensor=2", "parallel.pipeline=2", "engine.truth_check=off")


def test_tensor_and_pipeline_run_follows_the_curve_of_one_process(corpora: ToyCorpora, tmp_path: Path) -> None:
    assert main(corpora.arguments(tmp_path / "one", "validation.every_steps=4")) == ExitCode.FINISHED
    codes = launch(corpora.arguments(tmp_path / "grid", *GRID, "validation.every_steps=4"), world=4)
    assert codes == [ExitCode.FINISHED] * 4
    one, grid = RunOnDisk(tmp_path / "one"), RunOnDisk(tmp_path / "grid")
    assert len(grid.lines()) == STEPS, "one process writes the metrics"
    for line, control in zip(grid.lines(), one.lines(), strict=True):
        for key, value in control.items():
            if not key.startswith(("perf/", names.UNIX_SECONDS.key)):
                assert line[key] == pytest.approx(value, rel=1e-4), key
    validated = [line for line in grid.lines() if names.VALIDATION_LOSS.key in line]
    assert [line[names.STEP.key] for line in validated] == [4, STEPS]
    assert all(names.SOURCE_VALIDATION_LOSS.of(source) in line for line in validated for source in TEXTS)


def test_stopped_and_resumed_grid_is_bitwise_the_unbroken_one(corpora: ToyCorpora, tmp_path: Path) -> None:
    grid = (*GRID, "engine.precision=bf16", "model.hidden_dropout=0.1")
    launch(corpora.arguments(tmp_path / "whole", *grid), world=4)
    assert launch(corpora.arguments(tmp_path / "parts", *grid, "run.stop_after_steps=5"), world=4) == [0] * 4
    assert launch(corpora.arguments(tmp_path / "parts", *grid), world=4) == [0] * 4
    whole, parts = RunOnDisk(tmp_path / "whole"), RunOnDisk(tmp_path / "parts")
    assert parts.curve() == whole.curve()
    assert len(parts.curve()) == STEPS
    assert_same_values(parts, whole, STEPS)


def test_run_goes_on_at_another_layout_and_in_one_process(corpora: ToyCorpora, tmp_path: Path) -> None:
    assert launch(corpora.arguments(tmp_path, *GRID, "run.stop_after_steps=3"), world=4) == [0] * 4
    data = (*DEEPSPEED, "parallel.data=2", "run.stop_after_steps=6", "engine.truth_check=off")
    assert launch(corpora.arguments(tmp_path, *data), world=2) == [0] * 2
    assert main(corpora.arguments(tmp_path)) == ExitCode.FINISHED
    main(corpora.arguments(tmp_path / "whole"))
    moved, whole = RunOnDisk(tmp_path).lines(), RunOnDisk(tmp_path / "whole").lines()
    assert [line[names.STEP.key] for line in moved] == list(range(1, STEPS + 1))
    for line, control in zip(moved, whole, strict=True):
        assert line[names.LOSS.key] == pytest.approx(control[names.LOSS.key], rel=1e-4)


def test_sequence_may_be_cut_for_a_part_of_a_run(corpora: ToyCorpora, tmp_path: Path) -> None:
    often = ("validation.every_steps=4", "guards.replica_check_every_steps=1")
    cut = (*GRID, *often, "parallel.sequence=true", "engine.truth_check=on", "model.hidden_dropout=0.1")
    assert launch(corpora.arguments(tmp_path, *cut, "run.stop_after_steps=3"), world=4) == [0] * 4
    whole = (*cut, "parallel.sequence=false", "run.stop_after_steps=6")
    assert launch(corpora.arguments(tmp_path, *whole), world=4) == [0] * 4
    assert launch(corpora.arguments(tmp_path, *cut), world=4) == [0] * 4
    main(corpora.arguments(tmp_path / "one", "validation.every_steps=4", "model.hidden_dropout=0.1"))
    found, one = RunOnDisk(tmp_path).lines(), RunOnDisk(tmp_path / "one").lines()
    assert [line[names.STEP.key] for line in found] == list(range(1, STEPS + 1))
    for line, control in zip(found, one, strict=True):
        for key in {names.LOSS.key, names.GRAD_NORM.key, names.VALIDATION_LOSS.key} & control.keys():
            assert line[key] == pytest.approx(control[key], rel=1e-4), key


def _signal_one_rank(monkeypatch: pytest.MonkeyPatch, *, rank: int, done: int) -> None:
    original = loop.train_step

    def train_step(run: Run) -> None:
        if run.processes.launch.rank == rank and run.progress.step == done:
            os.kill(os.getpid(), signal.SIGTERM)
        original(run)

    monkeypatch.setattr(loop, "train_step", train_step)


def test_engine_and_checkpoints_agree_over_the_world_of_the_processes(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With GPUs that world is a group of the host, and the default group is not."""
    original = loop.train_step

    def train_step(run: Run) -> None:
        assert run.engine.groups.world is run.processes.world
        original(run)

    monkeypatch.setattr(loop, "train_step", train_step)
    arguments = corpora.arguments(tmp_path, *DEEPSPEED, "engine.truth_check=off", "run.stop_after_steps=1")
    assert launch(arguments, world=1) == [ExitCode.FINISHED]


def test_signal_to_one_process_stops_all_at_the_same_step(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _signal_one_rank(monkeypatch, rank=3, done=2)
    assert launch(corpora.arguments(tmp_path, *GRID), world=4) == [ExitCode.STOPPED] * 4
    run = RunOnDisk(tmp_path)
    assert run.steps() == [3]
    monkeypatch.undo()
    assert launch(corpora.arguments(tmp_path, *GRID), world=4) == [0] * 4
    assert [line[names.STEP.key] for line in run.lines()] == list(range(1, STEPS + 1))


def test_error_is_told_by_one_process_and_all_exit_alike(
    corpora: ToyCorpora, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = [a for a in corpora.arguments(tmp_path, *GRID) if not a.startswith("tokenizer.path")]
    assert launch([*missing, "tokenizer.path=nowhere"], world=4) == [ExitCode.BAD_INPUT] * 4
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("poro train:")]
    assert len(told) == 1
    assert "nowhere" in told[0]


def test_error_found_by_one_process_alone_ends_all(
    corpora: ToyCorpora, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails on the last node: the others learn it at the end of the phase and need no timeout."""
    original = mixture.build_mixture

    def build_mixture(*arguments: Any, **options: Any) -> Any:
        if os.environ["RANK"] == "3":
            raise DataError("corpora/finnish.bin cannot be read on node 3; remount the disk.")
        return original(*arguments, **options)

    monkeypatch.setattr("megatron_poro.train.build.build_mixture", build_mixture)
    assert launch(corpora.arguments(tmp_path, *GRID), world=4) == [ExitCode.BAD_INPUT] * 4
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("poro train:")]
    assert told == ["poro train: corpora/finnish.bin cannot be read on node 3; remount the disk."]


def test_wrong_gradients_stop_the_run_before_its_first_step(
    corpora: ToyCorpora, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth check is part of the start of a run: were the control another model, it would be noticed."""
    original = LocalEngine.gradients

    def doubled(self: LocalEngine) -> dict[str, Any]:
        return {name: 2 * gradient for name, gradient in original(self).items()}

    monkeypatch.setattr(LocalEngine, "gradients", doubled)
    arguments = corpora.arguments(tmp_path, *DEEPSPEED, "parallel.tensor=2", "engine.truth_check=on")
    assert launch(arguments, world=2) == [ExitCode.BAD_INPUT] * 2
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("poro train:")]
    assert len(told) == 1
    assert "is not that of one process" in told[0]
    assert not (tmp_path / "toy" / "metrics.jsonl").exists()


def test_deepspeed_runs_as_one_process_without_a_launcher(corpora: ToyCorpora, tmp_path: Path) -> None:
    assert launch(corpora.arguments(tmp_path, *DEEPSPEED), world=1) == [ExitCode.FINISHED]
    main(corpora.arguments(tmp_path / "local"))
    for line, control in zip(RunOnDisk(tmp_path).lines(), RunOnDisk(tmp_path / "local").lines(), strict=True):
        assert line[names.LOSS.key] == pytest.approx(control[names.LOSS.key], rel=1e-5)
