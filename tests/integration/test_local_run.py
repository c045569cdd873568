"""Whole runs of ``poro train`` in this process, on the local engine: start, stop, go on, and what they leave behind."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb

from megatron_poro.cli.train import main
from megatron_poro.config.load import from_yaml
from megatron_poro.data.batch import Batch
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.indexed_writer import IndexedWriter
from megatron_poro.engine.engine import StepResult
from megatron_poro.engine.local import LocalEngine
from megatron_poro.metrics import names
from megatron_poro.metrics.sinks import JsonLinesSink, Number
from megatron_poro.schedule.learning_rate import LearningRate
from megatron_poro.train import checkpointing
from megatron_poro.train.exit_code import ExitCode
from tests.integration.toy import (
    BATCH,
    SEQUENCE,
    STEPS,
    TEXTS,
    TOKENS_PER_STEP,
    RunOnDisk,
    ToyCorpora,
    assert_same_values,
)

TrainStep = Callable[..., StepResult]


def _hook_steps(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """Calls ``before(number of completed steps)`` ahead of each step of the local engine."""
    original: TrainStep = LocalEngine.train_step

    def train_step(self: LocalEngine, microbatches: list[Batch], **options: Any) -> StepResult:
        before(options["consumed_samples"] // BATCH)
        return original(self, microbatches, **options)

    monkeypatch.setattr(LocalEngine, "train_step", train_step)


def _poison(monkeypatch: pytest.MonkeyPatch, at_step: int) -> None:
    """Makes the loss of one step not a number, as a hardware fault or an overflow would."""
    original: TrainStep = LocalEngine.train_step

    def train_step(self: LocalEngine, microbatches: list[Batch], **options: Any) -> StepResult:
        if options["consumed_samples"] == (at_step - 1) * BATCH:
            bad = Batch(
                microbatches[0].tokens,
                microbatches[0].labels,
                torch.full_like(microbatches[0].loss_mask, float("nan")),
                microbatches[0].sources,
            )
            microbatches = [bad, *microbatches[1:]]
        return original(self, microbatches, **options)

    monkeypatch.setattr(LocalEngine, "train_step", train_step)


# --- what a run leaves behind ----------------------------------------------------------------------------------------


def test_run_learns_and_finishes(corpora: ToyCorpora, tmp_path: Path) -> None:
    assert main(corpora.arguments(tmp_path)) == ExitCode.FINISHED
    run = RunOnDisk(tmp_path)
    losses = [line[names.LOSS.key] for line in run.lines()]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.5
    assert run.steps() == [STEPS]
    assert (run.folder / "checkpoints" / "latest").read_text() == f"step_{STEPS:08d}\n"


def test_first_step_runs_at_rate_zero_and_counts_are_of_the_global_batch(corpora: ToyCorpora, tmp_path: Path) -> None:
    main(corpora.arguments(tmp_path))
    lines = RunOnDisk(tmp_path).lines()
    assert lines[0][names.LEARNING_RATE.key] == 0.0
    assert [line[names.STEP.key] for line in lines] == list(range(1, STEPS + 1))
    assert [line[names.TOKENS.key] for line in lines] == [TOKENS_PER_STEP * n for n in range(1, STEPS + 1)]
    assert [line[names.SAMPLES.key] for line in lines] == [BATCH * n for n in range(1, STEPS + 1)]
    for line in lines:
        assert sum(line[names.SOURCE_TOKENS.of(source)] for source in TEXTS) == TOKENS_PER_STEP


def test_tokens_and_epochs_of_every_source_count_from_the_start(corpora: ToyCorpora, tmp_path: Path) -> None:
    main(corpora.arguments(tmp_path))
    read = dict.fromkeys(TEXTS, 0)
    for line in RunOnDisk(tmp_path).lines():
        for source in TEXTS:
            read[source] += line[names.SOURCE_TOKENS.of(source)]
            assert line[names.SOURCE_CONSUMED_TOKENS.of(source)] == read[source]
            available = read[source] / line[names.SOURCE_EPOCHS.of(source)]
            assert available == pytest.approx(_tokens_of(corpora, source), rel=0.05)


def _tokens_of(corpora: ToyCorpora, source: str) -> int:
    return IndexedDataset(corpora.folder / f"{source}.train").num_tokens


def test_loss_of_a_line_is_the_mean_over_its_sources(corpora: ToyCorpora, tmp_path: Path) -> None:
    main(corpora.arguments(tmp_path))
    for line in RunOnDisk(tmp_path).lines():
        by_source = [(line[names.SOURCE_LOSS.of(s)], line[names.SOURCE_TOKENS.of(s)]) for s in TEXTS]
        mean = sum(loss * tokens for loss, tokens in by_source) / TOKENS_PER_STEP
        assert line[names.LOSS.key] == pytest.approx(mean, rel=1e-6)


def test_resolved_config_reads_back_as_the_run(corpora: ToyCorpora, tmp_path: Path) -> None:
    main(corpora.arguments(tmp_path))
    config = from_yaml(tmp_path / "toy" / "resolved.yaml")
    assert config.model.hidden_size == 32
    assert config.schedule.total_tokens == STEPS * TOKENS_PER_STEP
    assert config.data.train[0].name == "finnish"


def test_checkpoint_says_where_the_run_stands(corpora: ToyCorpora, tmp_path: Path) -> None:
    main(corpora.arguments(tmp_path, "run.stop_after_steps=3"))
    meta = json.loads((tmp_path / "toy" / "checkpoints" / "step_00000003" / "meta.json").read_text())
    assert (meta["step"], meta["consumed_samples"], meta["consumed_tokens"]) == (3, 3 * BATCH, 3 * TOKENS_PER_STEP)
    assert meta["milestone"] is None
    assert meta["check_loss"] > 0


def test_lines_cover_intervals_and_end_at_checkpoints(corpora: ToyCorpora, tmp_path: Path) -> None:
    main(corpora.arguments(tmp_path, "metrics.log_every_steps=3", "checkpoint.every_steps=4"))
    lines = RunOnDisk(tmp_path).lines()
    assert [line[names.STEP.key] for line in lines] == [3, 4, 6, 8]
    tokens = [sum(line[names.SOURCE_TOKENS.of(source)] for source in TEXTS) for line in lines]
    assert tokens == [3 * TOKENS_PER_STEP, TOKENS_PER_STEP, 2 * TOKENS_PER_STEP, 2 * TOKENS_PER_STEP]


def test_saves_every_so_many_steps_at_milestones_and_at_the_end(corpora: ToyCorpora, tmp_path: Path) -> None:
    arguments = corpora.arguments(
        tmp_path, "checkpoint.every_steps=2", "checkpoint.keep_last=100", f"export.every_tokens={3 * TOKENS_PER_STEP}"
    )
    assert main(arguments) == ExitCode.FINISHED
    run = RunOnDisk(tmp_path)
    assert run.steps() == [2, 3, 4, 6, 8]
    labels = {step: json.loads((run.store.path(step) / "meta.json").read_text())["milestone"] for step in run.steps()}
    assert labels == {2: None, 3: "384", 4: None, 6: "768", 8: "1024"}


def test_milestones_survive_and_other_checkpoints_do_not(corpora: ToyCorpora, tmp_path: Path) -> None:
    arguments = corpora.arguments(
        tmp_path, "checkpoint.every_steps=1", "checkpoint.keep_last=1", f"export.every_tokens={3 * TOKENS_PER_STEP}"
    )
    main(arguments)
    assert RunOnDisk(tmp_path).steps() == [3, 6, 8]


def test_validation_reports_every_source_and_leaves_training_alone(corpora: ToyCorpora, tmp_path: Path) -> None:
    main(corpora.arguments(tmp_path / "with", "validation.every_steps=3"))
    main(corpora.arguments(tmp_path / "without"))
    with_validation, without = RunOnDisk(tmp_path / "with"), RunOnDisk(tmp_path / "without")
    validated = [line for line in with_validation.lines() if names.VALIDATION_LOSS.key in line]
    assert [line[names.STEP.key] for line in validated] == [3, 6, STEPS]
    for source in TEXTS:
        losses = [line[names.SOURCE_VALIDATION_LOSS.of(source)] for line in validated]
        assert losses[-1] < losses[0]
    assert with_validation.curve() == without.curve()
    assert_same_values(with_validation, without, STEPS)


def test_validation_uses_the_same_samples_every_time(corpora: ToyCorpora, tmp_path: Path) -> None:
    frozen = ("schedule.learning_rate=1e-30", "optimizer.weight_decay=0", "validation.every_steps=1")
    main(corpora.arguments(tmp_path, *frozen))
    losses = {line[names.VALIDATION_LOSS.key] for line in RunOnDisk(tmp_path).lines()}
    assert len(losses) == 1


# --- stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_stopped_and_resumed_run_is_bitwise_the_unbroken_one(corpora: ToyCorpora, tmp_path: Path, stop: int) -> None:
    dropout = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")
    main(corpora.arguments(tmp_path / "whole", *dropout))
    assert main(corpora.arguments(tmp_path / "parts", *dropout, f"run.stop_after_steps={stop}")) == ExitCode.FINISHED
    assert RunOnDisk(tmp_path / "parts").steps() == [stop]
    assert main(corpora.arguments(tmp_path / "parts", *dropout)) == ExitCode.FINISHED
    whole, parts = RunOnDisk(tmp_path / "whole"), RunOnDisk(tmp_path / "parts")
    assert parts.curve() == whole.curve()
    assert_same_values(parts, whole, STEPS)


def test_bf16_run_resumes_bitwise(corpora: ToyCorpora, tmp_path: Path) -> None:
    main(corpora.arguments(tmp_path / "whole", "engine.precision=bf16"))
    main(corpora.arguments(tmp_path / "parts", "engine.precision=bf16", "run.stop_after_steps=5"))
    main(corpora.arguments(tmp_path / "parts", "engine.precision=bf16"))
    assert RunOnDisk(tmp_path / "parts").curve() == RunOnDisk(tmp_path / "whole").curve()
    assert_same_values(RunOnDisk(tmp_path / "parts"), RunOnDisk(tmp_path / "whole"), STEPS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_at_the_step_boundary_and_the_run_goes_on_bitwise(
    corpora: ToyCorpora, tmp_path: Path, number: signal.Signals
) -> None:
    main(corpora.arguments(tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        _hook_steps(patch, lambda done: os.kill(os.getpid(), number) if done == 2 else None)
        assert main(corpora.arguments(tmp_path / "parts")) == ExitCode.STOPPED
    parts = RunOnDisk(tmp_path / "parts")
    assert parts.steps() == [3], "the step that was running when the signal came is finished and saved"
    assert [line[names.STEP.key] for line in parts.lines()] == [1, 2, 3]
    assert main(corpora.arguments(tmp_path / "parts")) == ExitCode.FINISHED
    assert parts.curve() == RunOnDisk(tmp_path / "whole").curve()
    assert_same_values(parts, RunOnDisk(tmp_path / "whole"), STEPS)


def test_signal_during_validation_cuts_it_short_and_saves(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    portions = []
    original = LocalEngine.eval_step

    def eval_step(self: LocalEngine, microbatches: list[Batch]) -> Any:
        portions.append(len(microbatches))
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, microbatches)

    monkeypatch.setattr(LocalEngine, "eval_step", eval_step)
    code = main(corpora.arguments(tmp_path, "validation.every_steps=2", "validation.samples=80"))
    assert code == ExitCode.STOPPED
    assert portions == [4, 1], "one portion of ten, then the loss that goes into the checkpoint"
    run = RunOnDisk(tmp_path)
    assert run.steps() == [2]
    assert not any(names.VALIDATION_LOSS.key in line for line in run.lines())


def test_signal_before_the_first_step_saves_nothing(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LocalEngine.__init__

    def build(self: LocalEngine, *arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(self, *arguments, **options)

    monkeypatch.setattr(LocalEngine, "__init__", build)
    assert main(corpora.arguments(tmp_path)) == ExitCode.STOPPED
    assert RunOnDisk(tmp_path).steps() == []


def test_crash_loses_only_the_steps_after_the_last_checkpoint(corpora: ToyCorpora, tmp_path: Path) -> None:
    def crash(done: int) -> None:
        if done == 6:
            raise RuntimeError("a cable was pulled")

    arguments = corpora.arguments(tmp_path / "parts", "checkpoint.every_steps=4", "checkpoint.asynchronous=false")
    with pytest.MonkeyPatch.context() as patch:
        _hook_steps(patch, crash)
        assert main(arguments) == ExitCode.BUG
    parts = RunOnDisk(tmp_path / "parts")
    assert parts.steps() == [4]
    assert [line[names.STEP.key] for line in parts.lines()] == [1, 2, 3, 4, 5, 6]
    assert main(arguments) == ExitCode.FINISHED
    main(corpora.arguments(tmp_path / "whole"))
    assert parts.curve() == RunOnDisk(tmp_path / "whole").curve()
    assert_same_values(parts, RunOnDisk(tmp_path / "whole"), STEPS)


def test_steps_before_a_failure_are_logged_although_no_line_was_due(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, at_step=4)
    main(corpora.arguments(tmp_path, "metrics.log_every_steps=100", "guards.skip_not_finite=false"))
    (line,) = RunOnDisk(tmp_path).lines()
    assert line[names.STEP.key] == 3
    assert sum(line[names.SOURCE_TOKENS.of(source)] for source in TEXTS) == 3 * TOKENS_PER_STEP


def test_finished_run_started_again_does_nothing(corpora: ToyCorpora, tmp_path: Path) -> None:
    main(corpora.arguments(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "toy" / "checkpoints").rglob("*")}
    lines = RunOnDisk(tmp_path).lines()
    assert main(corpora.arguments(tmp_path)) == ExitCode.FINISHED
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "toy" / "checkpoints").rglob("*")} == before
    assert RunOnDisk(tmp_path).lines() == lines


def test_run_without_a_checkpoint_starts_over_with_clean_metrics(corpora: ToyCorpora, tmp_path: Path) -> None:
    def crash(done: int) -> None:
        if done == 2:
            raise RuntimeError("too early")

    with pytest.MonkeyPatch.context() as patch:
        _hook_steps(patch, crash)
        main(corpora.arguments(tmp_path))
    assert main(corpora.arguments(tmp_path)) == ExitCode.FINISHED
    assert [line[names.STEP.key] for line in RunOnDisk(tmp_path).lines()] == list(range(1, STEPS + 1))


# --- what goes wrong -------------------------------------------------------------------------------------------------


def _refused(capsys: pytest.CaptureFixture[str], arguments: list[str], code: ExitCode = ExitCode.BAD_INPUT) -> str:
    """The sentences with which a command line is refused, one per problem."""
    capsys.readouterr()
    assert main(arguments) == code
    told = capsys.readouterr().err
    sentences = [line for line in told.splitlines() if line.startswith("poro train: ")]
    assert 0 < len(sentences) == len(set(sentences)), told
    assert "Traceback" not in told
    return "\n".join(sentences)


def test_loss_that_is_not_finite_leaves_the_last_checkpoint_intact(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = corpora.arguments(
        tmp_path / "parts", "checkpoint.every_steps=1", "checkpoint.keep_last=1", "guards.skip_not_finite=false"
    )
    with pytest.MonkeyPatch.context() as patch:
        _poison(patch, at_step=6)
        assert "are not both finite" in _refused(capsys, arguments)
    parts = RunOnDisk(tmp_path / "parts")
    assert parts.steps() == [5]
    assert [line[names.STEP.key] for line in parts.lines()] == [1, 2, 3, 4, 5]
    main(corpora.arguments(tmp_path / "whole"))
    assert main(arguments) == ExitCode.FINISHED
    assert_same_values(parts, RunOnDisk(tmp_path / "whole"), STEPS)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.hiden_size=32", "model.hiden_size is not a config key"),
        ("schedule.learning_rate=fast", "schedule.learning_rate=fast is not a number"),
        ("parallel.tensor=3", "parallel.tensor=3"),
        ("parallel.data=2", "parallel.data=2"),
        ("engine.microbatch_samples=3", "engine.microbatch_samples=3"),
        ("model.vocab_size=100", "model.vocab_size=100 is less than the 280 ids"),
        ("tokenizer.path=nowhere", "nowhere"),
        ("data.train=[{name:a,path:nowhere/a,weight:1}]", "nowhere/a"),
        ("data.validation=[{name:a,path:nowhere/a,weight:1}]", "nowhere/a"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, told: str
) -> None:
    arguments = corpora.arguments(tmp_path, "validation.every_steps=1", f"data.index_cache={tmp_path / 'index'}")
    kept = [argument for argument in arguments if not argument.startswith(change.split("=")[0] + "=")]
    assert told in _refused(capsys, [*kept, change])
    assert not (tmp_path / "toy" / "resolved.yaml").exists()
    assert not (tmp_path / "toy" / "metrics.jsonl").exists()
    assert not (tmp_path / "toy" / "checkpoints").exists()


def test_token_beyond_the_vocabulary_is_refused(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with IndexedWriter(tmp_path / "wide", vocab_size=1000) as writer:
        for _ in range(20):
            writer.append([24, 25, 999] * 20)
    change = f"data.train=[{{name:wide,path:{tmp_path / 'wide'},weight:1}}]"
    assert "999" in _refused(
        capsys, [a for a in corpora.arguments(tmp_path) if not a.startswith("data.train")] + [change]
    )


def test_resume_with_another_model_is_refused_and_leaves_the_run_as_it_was(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(corpora.arguments(tmp_path, "run.stop_after_steps=3"))
    resolved, lines = (tmp_path / "toy" / "resolved.yaml").read_text(), RunOnDisk(tmp_path).lines()
    arguments = [a for a in corpora.arguments(tmp_path) if not a.startswith("model.hidden_size")]
    told = _refused(capsys, [*arguments, "model.hidden_size=64"])
    assert "model.hidden_size" in told
    assert "32" in told
    assert "64" in told
    assert (tmp_path / "toy" / "resolved.yaml").read_text() == resolved
    assert RunOnDisk(tmp_path).lines() == lines


def test_resume_with_other_data_under_the_same_name_is_refused(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(corpora.arguments(tmp_path, "run.stop_after_steps=7"))
    other = tmp_path / "moved"
    for name in TEXTS:
        with IndexedWriter(other / f"{name}.train", vocab_size=280) as writer:
            for number in range(200):
                writer.append([24 + (7 * number + 13 * position) % 256 for position in range(40)])
    arguments = [a.replace(f'"{corpora.folder}', f'"{other}') if a.startswith("data.train") else a
                 for a in corpora.arguments(tmp_path)]  # fmt: skip
    told = _refused(capsys, [*arguments, f"data.index_cache={tmp_path / 'index'}"])
    assert "first samples have loss" in told


def test_new_run_in_a_folder_with_checkpoints_is_refused(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(corpora.arguments(tmp_path, "run.stop_after_steps=3"))
    told = _refused(capsys, corpora.arguments(tmp_path, "resume.enabled=false"))
    assert "resume.enabled=false" in told
    assert "up to step 3" in told
    assert RunOnDisk(tmp_path).steps() == [3]


def test_folder_in_use_by_another_job_is_refused(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second: list[str] = []

    def start_again(done: int) -> None:
        if done == 2:
            second.append(_refused(capsys, corpora.arguments(tmp_path), ExitCode.IN_USE))

    with pytest.MonkeyPatch.context() as patch:
        _hook_steps(patch, start_again)
        assert main(corpora.arguments(tmp_path)) == ExitCode.FINISHED
    assert len(second) == 1
    assert "in use by another job" in second[0]
    assert main(corpora.arguments(tmp_path)) == ExitCode.FINISHED, "the folder is free again"


def test_full_disk_during_a_save_leaves_the_last_checkpoint_intact(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(corpora.arguments(tmp_path, "run.stop_after_steps=3"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        assert "no room" in _refused(capsys, corpora.arguments(tmp_path))
    run = RunOnDisk(tmp_path)
    assert run.steps() == [3]
    assert main(corpora.arguments(tmp_path)) == ExitCode.FINISHED
    main(corpora.arguments(tmp_path / "whole"))
    assert_same_values(run, RunOnDisk(tmp_path / "whole"), STEPS)


def test_broken_wandb_does_not_change_the_run(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**options: object) -> None:
        raise RuntimeError("no network")

    main(corpora.arguments(tmp_path / "without"))
    monkeypatch.setattr(wandb, "init", broken)
    assert main(corpora.arguments(tmp_path / "with", "metrics.wandb=true")) == ExitCode.FINISHED
    assert RunOnDisk(tmp_path / "with").curve() == RunOnDisk(tmp_path / "without").curve()


def test_error_of_the_program_shows_its_traceback_with_the_rank(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(self: JsonLinesSink, step: int, tokens: int, metrics: Mapping[str, Number]) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(JsonLinesSink, "write", crash)
    assert main(corpora.arguments(tmp_path)) == ExitCode.BUG
    traceback = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[rank 0]")]
    assert traceback[0] == "[rank 0] Traceback (most recent call last):"
    assert traceback[-1] == "[rank 0] ZeroDivisionError: a bug"
    assert RunOnDisk(tmp_path).steps() == []


def test_learning_rate_of_every_line_is_the_schedules(corpora: ToyCorpora, tmp_path: Path) -> None:
    main(corpora.arguments(tmp_path))
    config = from_yaml(tmp_path / "toy" / "resolved.yaml")
    schedule = LearningRate.of(config.schedule, sequence_length=SEQUENCE)
    for done, line in enumerate(RunOnDisk(tmp_path).lines()):
        assert line[names.LEARNING_RATE.key] == schedule.at(done * BATCH)


def test_the_check_loss_is_of_the_same_samples_whatever_the_microbatch(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two samples are checked; a microbatch of eight holds six more, which must not count."""
    monkeypatch.setattr(checkpointing, "CHECK_TOLERANCE", 1e-5)
    main(corpora.arguments(tmp_path, "run.stop_after_steps=3"))
    larger = [*corpora.arguments(tmp_path), "engine.microbatch_samples=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing, "_first_rows", lambda batch, count: batch)
        assert "first samples have loss" in _refused(capsys, larger)
    assert main(larger) == ExitCode.FINISHED


def test_a_changed_optimizer_needs_to_be_accepted(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(corpora.arguments(tmp_path, "run.stop_after_steps=3"))
    changed = corpora.arguments(tmp_path, "optimizer.weight_decay=0.2", "metrics.log_every_steps=2")
    assert "optimizer.weight_decay was 0.1, is now 0.2" in _refused(capsys, changed)
    assert main([*changed, "resume.accept=[optimizer.*]"]) == ExitCode.FINISHED
    told = capsys.readouterr().err
    assert "accepted since step_00000003: optimizer.weight_decay was 0.1, is now 0.2" in told
    assert "changed since step_00000003: metrics.log_every_steps was 1, is now 2" in told
    assert from_yaml(tmp_path / "toy" / "resolved.yaml").optimizer.weight_decay == 0.2
