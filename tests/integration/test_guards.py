"""What a run makes of bad steps, on the local engine: skip, go back, end; and what happens with each guard off."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.cli.train import main
from megatron_poro.metrics import names
from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.lineage import RunRecord
from tests.faults.guards import tell_in_advance
from tests.faults.poisons import SPIKE, Place, Poison
from tests.integration.toy import BATCH, TOKENS_PER_STEP, RunOnDisk, ToyCorpora, assert_same_values

STEPS = 16
SIZE = (f"schedule.total_tokens={STEPS * TOKENS_PER_STEP}", "checkpoint.asynchronous=false", "checkpoint.keep_last=20")
SPIKES = ("guards.spike_window_steps=6",)
GOING_BACK = ("checkpoint.every_steps=4", "guards.max_skips_in_row=2", "guards.rewind_margin_steps=1")


def _train(
    corpora: ToyCorpora,
    root: Path,
    *changes: str,
    place: Place | None = None,
    factor: float = math.nan,
    steps: Any = (),
) -> int:
    """A run, with a fault in some steps; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        if place is not None:
            Poison(place, factor, tuple(steps), BATCH).inject(patch.setattr)
        return main(corpora.arguments(root, *SIZE, *changes))


def _meta(run: RunOnDisk, step: int) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((run.store.path(step) / "meta.json").read_text())
    return meta


def _taken(run: RunOnDisk) -> list[int]:
    return [line[names.STEP.key] for line in run.lines() if names.LOSS.key in line]


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("place", [Place.ACTIVATION, Place.LOSS, Place.GRADIENT])
def test_run_that_skipped_a_step_is_bitwise_the_run_that_was_told_to(
    corpora: ToyCorpora, tmp_path: Path, place: Place, factor: float
) -> None:
    assert _train(corpora, tmp_path / "hit", place=place, factor=factor, steps=[7]) == ExitCode.FINISHED
    tell_in_advance(tmp_path / "told" / "toy", [7])
    assert _train(corpora, tmp_path / "told") == ExitCode.FINISHED
    hit, told = RunOnDisk(tmp_path / "hit"), RunOnDisk(tmp_path / "told")
    assert_same_values(hit, told, STEPS)
    assert hit.curve() == told.curve()
    for run in (hit, told):
        meta = _meta(run, STEPS)
        assert (meta["step"], meta["optimizer_step"], meta["skipped_steps"]) == (STEPS, STEPS - 1, [7])
        lines = {line[names.STEP.key]: line for line in run.lines()}
        assert lines[7][names.SKIPPED_STEPS.key] == 1
        assert names.LOSS.key not in lines[7]
        assert lines[8][names.SKIPPED_STEPS.key] == 0
    assert _meta(hit, STEPS)["guard"] == _meta(told, STEPS)["guard"], "what was refused is not in the window"


def test_run_that_may_not_skip_ends_instead(corpora: ToyCorpora, tmp_path: Path) -> None:
    off = "guards.skip_not_finite=false"
    assert _train(corpora, tmp_path, off, place=Place.LOSS, steps=[7]) == ExitCode.BAD_INPUT
    assert RunOnDisk(tmp_path).steps() == []


@pytest.mark.parametrize("place", [Place.LOSS, Place.GRADIENT])
def test_spike_is_skipped_and_without_the_guard_it_is_learned(
    corpora: ToyCorpora, tmp_path: Path, place: Place
) -> None:
    for name, sigma in (("on", 6), ("off", 0)):
        changes = (*SPIKES, f"guards.spike_sigma={sigma}", "optimizer.clip_norm=0")
        code = _train(corpora, tmp_path / name, *changes, place=place, factor=SPIKE, steps=[12])
        assert code == ExitCode.FINISHED
    skipped = {name: _meta(RunOnDisk(tmp_path / name), STEPS)["skipped_steps"] for name in ("on", "off")}
    assert skipped == {"on": [12], "off": []}
    tell_in_advance(tmp_path / "told" / "toy", [12])
    _train(corpora, tmp_path / "told", *SPIKES, "optimizer.clip_norm=0")
    told = RunOnDisk(tmp_path / "told")
    assert_same_values(RunOnDisk(tmp_path / "on"), told, STEPS)
    with pytest.raises(AssertionError, match="differ at step"):
        assert_same_values(RunOnDisk(tmp_path / "off"), told, STEPS)


def test_no_step_of_an_ordinary_run_is_skipped(corpora: ToyCorpora, tmp_path: Path) -> None:
    _train(corpora, tmp_path, "guards.spike_window_steps=32", f"schedule.total_tokens={80 * TOKENS_PER_STEP}")
    assert sum(line[names.SKIPPED_STEPS.key] for line in RunOnDisk(tmp_path).lines()) == 0


def test_resumed_run_judges_as_the_unbroken_one(corpora: ToyCorpora, tmp_path: Path) -> None:
    """A window that was lost at the stop would have to fill up again, and the spike would pass."""
    spike: dict[str, Any] = {"place": Place.LOSS, "factor": SPIKE, "steps": [12]}
    _train(corpora, tmp_path / "whole", *SPIKES, **spike)
    _train(corpora, tmp_path / "parts", *SPIKES, "run.stop_after_steps=11", **spike)
    _train(corpora, tmp_path / "parts", *SPIKES, **spike)
    whole, parts = RunOnDisk(tmp_path / "whole"), RunOnDisk(tmp_path / "parts")
    assert _meta(parts, STEPS)["skipped_steps"] == [12]
    assert parts.curve() == whole.curve()
    assert_same_values(parts, whole, STEPS)


def test_text_of_skipped_samples_is_kept(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(corpora, tmp_path, place=Place.LOSS, steps=[7])
    heading, *samples = map(json.loads, (tmp_path / "toy" / "skipped" / "step_00000007.jsonl").read_text().splitlines())
    assert heading["step"] == 7
    assert "not both finite" in heading["reason"]
    assert [one["sample"] for one in samples] == list(range(6 * BATCH, 7 * BATCH))
    assert {one["source"] for one in samples} <= {"finnish", "code"}
    assert all(one["text"] and one["documents"] for one in samples)
    told = capsys.readouterr().err
    assert "step 7 is passed over" in told
    assert repr(samples[0]["text"])[1:-1] in told or repr(samples[1]["text"])[1:-1] in told


def test_steps_refused_again_and_again_make_the_run_go_back_past_their_samples(
    corpora: ToyCorpora, tmp_path: Path
) -> None:
    assert _train(corpora, tmp_path / "hit", *GOING_BACK, place=Place.LOSS, steps=[10, 11]) == ExitCode.FINISHED
    hit = RunOnDisk(tmp_path / "hit")
    record = RunRecord.read(hit.folder / "run.json")
    (rewind,) = record.rewinds
    assert (rewind.to, str(rewind.skip)) == (8, "9:11")
    assert _meta(hit, STEPS)["skipped_steps"] == [9, 10, 11]
    assert [line[names.STEP.key] for line in hit.lines()] == list(range(1, STEPS + 1))
    assert [line[names.LINEAGE.key] for line in hit.lines()] == [0] * 8 + [1] * 8
    assert (hit.folder / "abandoned" / "1").is_dir()
    tell_in_advance(tmp_path / "told" / "toy", [9, 10, 11])
    _train(corpora, tmp_path / "told", *GOING_BACK)
    assert_same_values(hit, RunOnDisk(tmp_path / "told"), STEPS)
    assert hit.curve() == RunOnDisk(tmp_path / "told").curve()


def test_weight_that_became_nan_is_read_back_from_the_checkpoint(corpora: ToyCorpora, tmp_path: Path) -> None:
    hit, never = tmp_path / "hit", tmp_path / "never"
    assert _train(corpora, hit, *GOING_BACK, place=Place.WEIGHT, steps=[10]) == ExitCode.FINISHED
    off = (*GOING_BACK, "guards.max_skips_in_row=0")
    assert _train(corpora, never, *off, place=Place.WEIGHT, steps=[10]) == ExitCode.BAD_INPUT
    assert _meta(RunOnDisk(hit), STEPS)["skipped_steps"] == [9, 10, 11]
    assert _taken(RunOnDisk(hit)) == [*range(1, 9), *range(12, STEPS + 1)]
    assert _taken(RunOnDisk(never)) == list(range(1, 10)), "it never recovers"
    assert RunOnDisk(never).steps() == [4, 8], "and has nothing that is worth saving"


def test_margin_doubles_at_the_same_place_and_then_the_run_asks_for_a_person(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trouble moves with the run: going back does not help."""
    changes = (*GOING_BACK, "checkpoint.every_steps=1", "guards.max_rewinds=2")
    code = _train(corpora, tmp_path, *changes, place=Place.LOSS, steps=range(8, STEPS + 1))
    assert code == ExitCode.DIVERGED
    record = RunRecord.read(tmp_path / "toy" / "run.json")
    assert [(one.to, str(one.skip)) for one in record.rewinds] == [(6, "7:9"), (4, "5:11")]
    told = capsys.readouterr().err
    assert "has gone back 2 times here (guards.max_rewinds)" in told
    assert "Traceback" not in told


def test_run_without_a_checkpoint_to_go_back_to_ends(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = (*GOING_BACK, "checkpoint.every_steps=0")
    assert _train(corpora, tmp_path, *changes, place=Place.LOSS, steps=[3, 4]) == ExitCode.DIVERGED
    assert "no checkpoint before them" in capsys.readouterr().err


def test_no_checkpoint_is_given_up_while_steps_are_refused(corpora: ToyCorpora, tmp_path: Path) -> None:
    """With one checkpoint kept and one saved each step, the good one would be gone before the run goes back."""
    changes = ("checkpoint.every_steps=1", "checkpoint.keep_last=1", "guards.max_skips_in_row=3")
    assert _train(corpora, tmp_path, *changes, place=Place.WEIGHT, steps=[7]) == ExitCode.FINISHED
    assert [one.to for one in RunRecord.read(tmp_path / "toy" / "run.json").rewinds] == [6]


def test_full_disk_does_not_keep_a_run_from_skipping(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "toy" / "skipped"
    blocked.parent.mkdir()
    blocked.write_text("a file where the folder should be")
    assert _train(corpora, tmp_path, place=Place.LOSS, steps=[7]) == ExitCode.FINISHED
    assert "cannot be written" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "toy")
