"""Profiled runs: what they leave behind, that they compute the same as others, and what becomes of a broken one."""

import errno
import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.cli.train import main
from megatron_poro.data.loading import BatchLoader
from megatron_poro.engine.local import LocalEngine
from megatron_poro.parallel.step_clock import Part
from megatron_poro.train import tracing
from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.step_table import column
from tests.faults.poisons import Place, Poison
from tests.integration.toy import BATCH, STEPS, TOKENS_PER_STEP, RunOnDisk, ToyCorpora, assert_same_values, launch
from tests.support.ranks import RankFailure

GRID = (
    "engine=deepspeed",
    "engine.precision=bf16",
    "parallel.tensor=2",
    "parallel.pipeline=2",
    "engine.truth_check=off",
    "model.hidden_dropout=0.1",
)


def _table(root: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((root / "toy" / "profile" / "table.json").read_text())
    return record


def _events(root: Path, rank: int) -> set[str]:
    """Names of all that a trace has recorded."""
    content = json.loads(gzip.decompress((root / "toy" / "profile" / f"trace_rank{rank}.json.gz").read_bytes()))
    return {event["name"] for event in content["traceEvents"]}


def _is_whole(root: Path, *, processes: int) -> bool:
    """Whether a run's folder holds a profile of so many processes and nothing half-written."""
    traces = [f"trace_rank{rank}.json.gz" for rank in range(processes)]
    left = [path for path in (root / "toy").iterdir() if path.name.startswith("profile.")]
    return not left and sorted(os.listdir(root / "toy" / "profile")) == ["table.json", "table.md", *traces]


# --- what it says ----------------------------------------------------------------------------------------------------


def test_table_of_one_process_adds_up_to_the_time_measured_around_it(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds: list[float] = []

    def timed(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                seconds.append(time.perf_counter() - began)

        return run

    monkeypatch.setattr(BatchLoader, "load", timed(BatchLoader.load))
    monkeypatch.setattr(LocalEngine, "train_step", timed(LocalEngine.train_step))
    assert main(corpora.arguments(tmp_path, "profile.steps=2:4")) == ExitCode.FINISHED
    assert _is_whole(tmp_path, processes=1)
    table = _table(tmp_path)
    assert table["steps"] == [2, 3, 4]
    (row,) = table["processes"]
    assert row["parts_ms"].keys() == {part.value for part in Part}
    assert row["step_ms"] == sum(row["parts_ms"].values())
    assert row["step_ms"] == pytest.approx(1000 * sum(seconds[2:8]) / 3, rel=0.1)
    idle = {part.value for part in (Part.TENSOR, Part.PIPELINE, Part.DATA, Part.AGREEMENT)}
    assert {part for part, milliseconds in row["parts_ms"].items() if not milliseconds} == idle
    page, told = (tmp_path / "toy" / "profile" / "table.md").read_text(), capsys.readouterr().err
    for text in (page, told):
        assert all(f" {column(part)} |" in text for part in Part)
        assert "| rank 0: stage 0, replica 0, tensor 0 |" in text


def test_trace_holds_the_operations_of_the_profiled_steps_alone(corpora: ToyCorpora, tmp_path: Path) -> None:
    main(corpora.arguments(tmp_path, "profile.steps=2:4"))
    events = _events(tmp_path, 0)
    assert {name for name in events if name.startswith("step ")} == {"step 2", "step 3", "step 4"}
    assert {"aten::addmm", "aten::embedding"} <= events


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipev"])
def test_parts_of_every_process_of_a_grid_add_up_and_no_bit_changes(
    corpora: ToyCorpora, tmp_path: Path, capfd: pytest.CaptureFixture[str], schedule: str
) -> None:
    grid = (*GRID, f"engine.pipeline_schedule={schedule}")
    assert launch(corpora.arguments(tmp_path / "with", *grid, "profile.steps=3:4"), world=4) == [0] * 4
    assert capfd.readouterr().err.count("| mean of 4 ") == 1, "one process tells"
    assert _is_whole(tmp_path / "with", processes=4)
    table = _table(tmp_path / "with")
    assert [(one["pipeline"], one["tensor"]) for one in table["processes"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    steps = [one["step_ms"] for one in table["processes"]]
    for one, step in zip(table["processes"], steps, strict=True):
        assert step == sum(one["parts_ms"].values())
        assert all(one["parts_ms"].values()), "each part takes some time on each process"
        assert step == pytest.approx(table["mean"]["step_ms"], rel=0.5), "they begin and end a step nearly together"
    assert table["mean"]["step_ms"] == pytest.approx(sum(steps) / 4)
    for rank in range(4):
        assert {"step 3", "step 4"} <= _events(tmp_path / "with", rank)
    launch(corpora.arguments(tmp_path / "without", *grid), world=4)
    left, right = RunOnDisk(tmp_path / "with"), RunOnDisk(tmp_path / "without")
    assert left.curve() == right.curve()
    assert_same_values(left, right, STEPS)


# --- what it leaves alone --------------------------------------------------------------------------------------------


def test_profiled_run_ends_with_the_bits_of_one_that_is_not(corpora: ToyCorpora, tmp_path: Path) -> None:
    for name, steps in (("with", f"1:{STEPS}"), ("without", "null")):
        assert main(corpora.arguments(tmp_path / name, f"profile.steps={steps}")) == ExitCode.FINISHED
    left, right = RunOnDisk(tmp_path / "with"), RunOnDisk(tmp_path / "without")
    assert left.curve() == right.curve()
    assert_same_values(left, right, STEPS)
    assert not (tmp_path / "without" / "toy" / "profile").exists()


def test_run_without_a_profile_makes_no_profiler(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "profile", lambda: pytest.fail("a profiler was made"))
    assert main(corpora.arguments(tmp_path)) == ExitCode.FINISHED


# --- a run that is interrupted, goes back, or cannot write -----------------------------------------------------------


def test_run_killed_while_its_profile_is_written_goes_on_and_writes_a_whole_one(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    every = ("checkpoint.every_steps=1", "checkpoint.asynchronous=false")

    def die(trace: object, path: Path) -> None:
        path.write_bytes(b"half a trace")
        os._exit(9)

    with monkeypatch.context() as patch:
        patch.setattr(tracing.Trace, "write", die)
        with pytest.raises(RankFailure, match="died"):
            launch(corpora.arguments(tmp_path / "parts", *every, "profile.steps=2:4"), world=1)
    assert (tmp_path / "parts" / "toy" / "profile.tmp" / "trace_rank0.json.gz").exists()
    parts, whole = RunOnDisk(tmp_path / "parts"), RunOnDisk(tmp_path / "whole")
    assert not (parts.folder / "profile").exists()
    assert max(parts.steps()) == 3
    assert main(corpora.arguments(tmp_path / "parts", *every, "profile.steps=2:4")) == ExitCode.FINISHED
    told = capsys.readouterr().err
    assert "profile.steps=2:4 begins in the past: the run goes on after step 3, so only step 4 can be profiled" in told
    assert _is_whole(tmp_path / "parts", processes=1)
    assert _table(tmp_path / "parts")["steps"] == [4]
    main(corpora.arguments(tmp_path / "whole", *every))
    assert_same_values(parts, whole, STEPS)


def test_run_that_ends_within_its_profiled_steps_leaves_no_profile(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LocalEngine.train_step

    def interrupted(engine: LocalEngine, *arguments: Any, **options: Any) -> Any:
        if options["consumed_samples"] == 2 * BATCH:
            raise KeyboardInterrupt
        return original(engine, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "train_step", interrupted)
        assert main(corpora.arguments(tmp_path, "profile.steps=2:4")) == ExitCode.INTERRUPTED
    assert not list((tmp_path / "toy").glob("profile*"))
    assert main(corpora.arguments(tmp_path, "profile.steps=2:4")) == ExitCode.FINISHED
    assert _table(tmp_path)["steps"] == [2, 3, 4]


def test_later_profile_takes_the_place_of_an_earlier_one_and_the_run_is_the_same(
    corpora: ToyCorpora, tmp_path: Path
) -> None:
    assert main(corpora.arguments(tmp_path, "profile.steps=1:2", "run.stop_after_steps=3")) == ExitCode.FINISHED
    assert _table(tmp_path)["steps"] == [1, 2]
    assert main(corpora.arguments(tmp_path, "profile.steps=5:6")) == ExitCode.FINISHED
    assert _table(tmp_path)["steps"] == [5, 6]
    assert _is_whole(tmp_path, processes=1)


def test_steps_that_are_passed_are_said_to_be(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(corpora.arguments(tmp_path, "run.stop_after_steps=5"))
    assert main(corpora.arguments(tmp_path, "profile.steps=2:4")) == ExitCode.FINISHED
    told = capsys.readouterr().err
    assert "profile.steps=2:4 begins in the past: the run goes on after step 5, so nothing is profiled" in told
    assert not (tmp_path / "toy" / "profile").exists()


def test_steps_that_a_run_went_back_over_are_not_in_its_profile(
    corpora: ToyCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 10 and 11 are refused, and the run goes back to 8 and leaves out 9 to 11: of 9 to 12 only 12 remains."""
    Poison(Place.LOSS, float("nan"), (10, 11), BATCH).inject(monkeypatch.setattr)
    back = ("checkpoint.every_steps=4", "guards.max_skips_in_row=2", "guards.rewind_margin_steps=1")
    size = (f"schedule.total_tokens={16 * TOKENS_PER_STEP}", "checkpoint.asynchronous=false", "checkpoint.keep_last=20")
    assert main(corpora.arguments(tmp_path, *back, *size, "profile.steps=9:12")) == ExitCode.FINISHED
    assert _table(tmp_path)["steps"] == [12]
    assert {name for name in _events(tmp_path, 0) if name.startswith("step ")} == {"step 12"}


def test_disk_that_refuses_one_process_its_trace_ends_the_profile_and_not_the_run(
    corpora: ToyCorpora, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tracing.Trace.write

    def write(trace: tracing.Trace, path: Path) -> None:
        if os.environ["RANK"] == "1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(trace, path)

    monkeypatch.setattr(tracing.Trace, "write", write)
    layout = ("engine=deepspeed", "parallel.data=2", "engine.truth_check=off")
    assert launch(corpora.arguments(tmp_path, *layout, "profile.steps=2:3"), world=2) == [ExitCode.FINISHED] * 2
    assert "(No space left on device); the run goes on without it" in capfd.readouterr().err
    assert not list((tmp_path / "toy").glob("profile*"))
    assert RunOnDisk(tmp_path).steps() == [STEPS]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "told"),
    [("abc", "profile.steps=abc names no steps"), (f"2:{STEPS + 1}", f"but the run ends after step {STEPS}")],
)
def test_steps_that_cannot_be_are_refused_in_a_sentence(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: str, told: str
) -> None:
    assert main(corpora.arguments(tmp_path, f"profile.steps={steps}")) == ExitCode.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "toy").exists()
