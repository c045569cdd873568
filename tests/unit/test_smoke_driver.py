"""The driver of `make smoke` judges what the commands left behind; each of its judgements can fail."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launch import smoke


def metrics(first: int, last: int, *, start: float = 8.0, fall: float = 0.05) -> bytes:
    lines = [
        {"train/step": step, "train/loss": start - fall * step, "perf/tokens_per_second": 1000.0}
        for step in range(first, last + 1)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def report(exports: Path, label: str, *, step: int, met: bool = True) -> None:
    parity = {"met": met, "max_abs_difference": 1e-6, "argmax_agreement": 1.0}
    (exports / label).mkdir(parents=True)
    (exports / label / "export_report.json").write_text(json.dumps({"checkpoint": {"step": step}, "parity": parity}))


def test_a_healthy_run_passes_and_fills_the_table(tmp_path: Path) -> None:
    curve = smoke.judge_curve(metrics(1, 40), metrics(1, 80), stop_step=40)
    report(tmp_path, "164k", step=80)
    report(tmp_path, "82k", step=40)
    reports = smoke.judge_exports(tmp_path, last_step=80)
    assert list(reports) == ["82k", "164k"]
    console = Console(width=120, record=True)
    console.print(smoke.summary(Path("work/smoke"), curve, reports, seconds=100.0))
    text = console.export_text()
    assert "7.950 at step 1, 4.000 at step 80" in text
    assert "work/smoke/runs/smoke_cpu/exports/164k" in text


@pytest.mark.parametrize(
    ("first_half", "both", "complaint"),
    [
        (metrics(1, 40, fall=0.01), metrics(1, 80, fall=0.01), "it must fall by 1"),
        (metrics(1, 80), metrics(1, 80), "was to stop after 40"),
        (b"", metrics(1, 80), "was to stop after 40"),
        (metrics(1, 40), metrics(1, 40), "one line per step"),
        (metrics(1, 40), metrics(1, 40) + metrics(42, 80), "one line per step"),
        (metrics(1, 40), metrics(1, 40) + metrics(40, 80), "one line per step"),
        (metrics(1, 40), metrics(1, 80, start=8.1), "lines of steps before the stop have changed"),
        (metrics(1, 40), metrics(1, 80).replace(b"4.0,", b"null,"), "not finite"),
    ],
    ids=["no fall", "no stop", "empty", "no second half", "gap", "repeated step", "started anew", "nan"],
)
def test_a_sick_run_is_refused(first_half: bytes, both: bytes, complaint: str) -> None:
    with pytest.raises(smoke.SmokeFailure, match=complaint):
        smoke.judge_curve(first_half, both, stop_step=40)


def test_an_export_that_is_not_proven_is_refused(tmp_path: Path) -> None:
    report(tmp_path, "82k", step=40, met=False)
    report(tmp_path, "164k", step=80)
    with pytest.raises(smoke.SmokeFailure, match="export 82k is not proven"):
        smoke.judge_exports(tmp_path, last_step=80)


@pytest.mark.parametrize(("steps", "complaint"), [([], "no export"), ([40], "the newest export is of step 40")])
def test_a_missing_export_is_refused(tmp_path: Path, steps: list[int], complaint: str) -> None:
    for step in steps:
        report(tmp_path, str(step), step=step)
    with pytest.raises(smoke.SmokeFailure, match=complaint):
        smoke.judge_exports(tmp_path, last_step=80)


def test_fresh_removes_what_a_job_makes_and_nothing_else(tmp_path: Path) -> None:
    for name in ("runs", "corpora", "thesis"):
        (tmp_path / name).mkdir()
    with pytest.raises(smoke.SmokeFailure, match="--fresh"):
        smoke.make_room(tmp_path, fresh=False)
    smoke.make_room(tmp_path, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_a_command_that_fails_ends_the_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = smoke.Job(tmp_path, Console())
    bad: list[Any] = [lambda: job.run("poro trian"), lambda: job.run_side_by_side(["poro --version", "poro trian"])]
    for run in bad:
        with pytest.raises(smoke.SmokeFailure, match="`poro trian` ended with status 2"):
            run()
        assert "did you mean `poro train`" in "".join(capfd.readouterr())
