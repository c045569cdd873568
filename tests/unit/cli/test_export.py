"""``poro export``: which checkpoints, under which names, and what an exit status says."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.checkpoint import hf_export, parity
from megatron_poro.checkpoint.export_report import REPORT_NAME
from megatron_poro.checkpoint.hf_export import Proof
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.cli.export import main
from megatron_poro.config.run import ExportConfig
from megatron_poro.errors import CheckpointError
from tests.unit.checkpoint.bloom_checkpoint import TOKENIZER, save_bloom


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two milestones and one checkpoint that is none."""
    for step, milestone in ((5, "1k"), (10, "2k"), (12, None)):
        save_bloom(tmp_path / "run" / "checkpoints", step, milestone=milestone)
    return tmp_path / "run"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_milestones_are_exported_once_and_only_they(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--milestones"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        f"1k: {run / 'exports' / '1k'}, 29 tensors, 92,680 parameters, 185 kB in 1 file, logits differ"
    )
    assert second.startswith(f"2k: {run / 'exports' / '2k'}")
    assert names(run / "exports") == ["1k", "2k"]
    assert json.loads((run / "exports" / "2k" / REPORT_NAME).read_text())["parity"]["met"]
    assert main([str(run), "--milestones"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{label}: {run / 'exports' / label} exists already" for label in ("1k", "2k")
    ]


@pytest.mark.parametrize(("words", "label"), [([], "step_00000012"), (["--step", "10"], "2k")])
def test_one_checkpoint_goes_to_the_runs_exports(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], label: str
) -> None:
    assert main([str(run), "--no-parity", *words]) == 0
    assert names(run / "exports") == [label]
    assert "not compared with the checkpoint" in capsys.readouterr().out


def test_a_step_folder_can_be_named_and_the_output_chosen(run: Path, tmp_path: Path) -> None:
    words = ["--no-parity", "--output", str(tmp_path / "here"), "--max-shard-bytes", "60k"]
    assert main([str(run / "checkpoints" / "step_00000005"), *words]) == 0
    assert "model-00001-of-00004.safetensors" in names(tmp_path / "here")


def test_milestones_can_go_elsewhere(run: Path, tmp_path: Path) -> None:
    assert main([str(run), "--milestones", "--no-parity", "--output", str(tmp_path / "there")]) == 0
    assert names(tmp_path / "there") == ["1k", "2k"]


def test_a_milestone_that_is_damaged_fails_the_command_but_not_the_others(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_poro.cli.export.configure", lambda: None)  # keep the log for this test
    (run / "checkpoints" / "step_00000005" / ".metadata").unlink()
    assert main([str(run), "--milestones", "--no-parity"]) == 2
    assert ".metadata is missing" in caplog.text
    assert names(run / "exports") == ["2k"]


def test_an_export_that_is_not_proven_ends_in_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "prove_parity", lambda *_, **__: Proof(met=False, verdict="No.", measurements={}))
    with pytest.raises(CheckpointError, match=r"is not the model of the checkpoint: No\. Look at .*1k\.failed"):
        main([str(run), "--step", "5"])
    assert main([str(run), "--milestones"]) == 2
    assert names(run / "exports") == ["1k.failed", "2k.failed"]


def test_a_checkpoint_outside_a_run_needs_an_output(run: Path, tmp_path: Path) -> None:
    moved = (run / "checkpoints" / "step_00000005").rename(tmp_path / "step_00000005")
    with pytest.raises(CheckpointError, match="is not in a run folder: say with --output"):
        main([str(moved), "--no-parity"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step", "7"], r"has no checkpoint of step 7; it has 5, 10, 12\."),
        (["--tokenizer", "nowhere"], "tokenizer folder nowhere does not exist"),
    ],
)
def test_what_does_not_exist_is_named(run: Path, words: list[str], said: str) -> None:
    with pytest.raises(Exception, match=said):
        main([str(run), "--no-parity", *words])


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path} has no checkpoints. Give a run folder"):
        main([str(tmp_path)])


def test_a_tokenizer_of_ones_own_can_be_given(run: Path, tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer")
    words = ["--no-parity", "--tokenizer", str(tmp_path / "tokenizer"), "--output", str(tmp_path / "out")]
    assert main([str(run), *words]) == 0


@pytest.fixture
def whole_run(tmp_path: Path) -> Path:
    """A run whose two milestones are its half and its end."""
    for step, milestone in ((50, "3200"), (100, "6400")):
        export = ExportConfig(every_tokens=3200)
        save_bloom(tmp_path / "run" / "checkpoints", step, milestone=milestone, export=export)
    return tmp_path / "run"


def test_a_watch_ends_with_the_runs_last_milestone(whole_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(whole_run), "--watch", "--no-parity"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["3200", "6400"]
    assert names(whole_run / "exports") == ["3200", "6400"]


def test_a_watch_that_could_not_export_all_says_so_at_its_end(
    whole_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prove(reader: CheckpointReader, folder: Path, **_: object) -> Proof:
        return Proof(met=reader.state.step == 100, verdict="Not it.", measurements={})

    monkeypatch.setattr(parity, "prove_parity", prove)
    assert main([str(whole_run), "--watch"]) == 2
    assert names(whole_run / "exports") == ["3200.failed", "6400"]
    assert "milestone 3200 is not exported" in capsys.readouterr().err.splitlines()[-1]


def test_a_watch_that_is_terminated_while_it_waits_ends_well(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is not over after the two milestones."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("time.sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    assert main([str(run), "--watch", "--no-parity", "--poll", "0.5"]) == 0
    assert names(run / "exports") == ["1k", "2k"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_watch_that_is_terminated_in_an_export_leaves_none(whole_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = hf_export.write_safetensors

    def interrupted(path: Path, *arguments: Any, **settings: Any) -> Any:
        if "6400" in str(path):
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
        return write(path, *arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(hf_export, "write_safetensors", interrupted)
        assert main([str(whole_run), "--watch", "--no-parity"]) == 0
    assert names(whole_run / "exports") == ["3200"]
    assert main([str(whole_run), "--watch", "--no-parity"]) == 0
    assert names(whole_run / "exports") == ["3200", "6400"]


def test_a_watch_needs_a_folder_to_watch(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder: give the run folder"):
        main([str(tmp_path / "nowhere"), "--watch"])


@pytest.mark.parametrize("poll", ["0", "-1", "nan", "inf", "x"])
def test_a_poll_is_a_time(run: Path, poll: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(run), "--watch", f"--poll={poll}"])
    assert f"invalid _time_to_wait value: '{poll}'" in capsys.readouterr().err
