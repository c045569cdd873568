"""What is known of a run from outside, and what somebody is told of it. Slurm is what a test says it is."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.cli.main import main
from megatron_poro.cluster import ledger, run_status, slurm
from megatron_poro.cluster.job_folder import JobFolder, JobSettings
from megatron_poro.cluster.run_status import RunStatus, describe, status_of
from megatron_poro.cluster.slurm import QueuedJob
from megatron_poro.cluster.templates import slurm_folder
from megatron_poro.cluster.watching import Alert, Limits, Teller, alerts, divergence
from megatron_poro.config.load import load_config
from megatron_poro.errors import ConfigError

RUNNING = QueuedJob("7", "RUNNING", "None", "1:00", "1-00:00:00", "1", "nid000001")
WAITING = QueuedJob("8", "PENDING", "Dependency", "0:00", "1-00:00:00", "1", "")


@pytest.fixture
def folder(tmp_path: Path, queue: list[QueuedJob]) -> JobFolder:
    """A run of 80 steps that was submitted."""
    jobs = JobFolder(tmp_path / "mine")
    settings = JobSettings(
        name="mine-1", nodes=1, tasks_per_node=4, gpus_per_node=0, max_fruitless_jobs=3, devices_per_module=2,
        interfaces=[], min_shared_memory_bytes=0, min_free_bytes=0, slow_factor=2.0, preflight_network=False,
        working_folder="/",
    )  # fmt: skip
    site = slurm_folder() / "sites" / "generic.sh"
    jobs.write(load_config(["experiment=smoke_cpu"]), settings, script="", site=site)
    return jobs


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> list[QueuedJob]:
    """What Slurm has in its queue."""
    jobs: list[QueuedJob] = []
    monkeypatch.setattr(slurm, "is_here", lambda: True)
    monkeypatch.setattr(slurm, "jobs_called", lambda name: list(jobs))
    return jobs


def start(folder: JobFolder, job: str = "7", restart: int = 0) -> None:
    ledger.append(folder.ledger, "start", job=job, restart=restart, hosts=["nid000001"], step=0)


def end(folder: JobFolder, verdict: str, code: int | None) -> None:
    values = {"code": code, "verdict": verdict, "reason": "x", "leaving": "", "failures": []}
    ledger.append(folder.ledger, "end", job="7", restart=0, step=0, **values)


def train(folder: JobFolder, steps: int, *, ago: float = 0.0, loss: float = 2.5) -> None:
    """Writes metrics as a run does."""
    lines = [
        {
            "train/step": step, "train/tokens": 2048 * step, "train/loss": loss, "perf/tokens_per_second": 1024.0,
            "train/unix_seconds": time.time() - ago,
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip
    (folder.run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"train/st')


def look(folder: JobFolder) -> RunStatus:
    return status_of(folder, stalled_seconds=600)


def test_a_run_that_trains(folder: JobFolder, queue: list[QueuedJob]) -> None:
    queue += [RUNNING, WAITING]
    ledger.append(folder.ledger, "start", job="7", restart=0, hosts=["nid000001"], step=0)
    train(folder, 20)
    status = look(folder)
    assert (status.state, status.step, status.last_step, status.tokens, status.loss) == ("training", 20, 80, 40960, 2.5)
    assert status.total_tokens == 80 * 2048
    assert status.seconds_left == pytest.approx(60 * 2048 / 1024)
    text = describe(status)
    assert "20 of 80 (25.0%)" in text
    assert "1,024 tokens/s, 2 min 00 s left" in text
    assert "7 running on nid000001" in text
    assert "8 pending (Dependency)" in text
    assert json.loads(status.to_json())["jobs"][0]["job"] == "7"


def test_states_of_a_run(folder: JobFolder, queue: list[QueuedJob], monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(folder).state == "no jobs"
    queue.append(WAITING)
    assert look(folder).state == "waiting"
    queue[:] = [RUNNING]
    start(folder)
    assert look(folder).state == "starting"
    queue.clear()
    end(folder, "look", 2)
    assert look(folder).state == "needs a person"
    folder.stop_mark.touch()
    assert look(folder).state == "stopped"
    monkeypatch.setattr(run_status, "saved_step", lambda run: 80)
    assert look(folder).state == "finished"


def test_a_job_that_is_silent_for_long_has_stalled(
    folder: JobFolder, queue: list[QueuedJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.append(RUNNING)
    start(folder)
    train(folder, 3, ago=5000)
    assert look(folder).state == "starting", "the silence is older than the job"
    later = time.time() + 700
    monkeypatch.setattr(run_status.time, "time", lambda: later)
    assert look(folder).state == "stalled"


def test_without_slurm_the_files_say_what_they_can(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "is_here", lambda: False)
    start(folder)
    train(folder, 3)
    status = look(folder)
    assert (status.state, status.jobs) == ("training", None)
    assert "Slurm's commands are not here" in describe(status)


def status_with(**values: Any) -> RunStatus:
    nothing = RunStatus(
        run="runs/mine", state="training", step=5, last_step=80, tokens=0, total_tokens=0, loss=2.0,
        tokens_per_second=1.0, seconds_left=1.0, silent_seconds=1.0, checkpoint_step=0, free_bytes=10**12,
        jobs=[RUNNING, WAITING], attempts=[], excluded=[], strikes={},
    )  # fmt: skip
    return replace(nothing, **values)


def kinds(status: RunStatus, losses: list[float | None] | None = None, limits: Limits | None = None) -> list[str]:
    return [alert.kind for alert in alerts(status, losses or [], limits or Limits())]


def test_a_run_that_is_well_is_not_worth_a_word() -> None:
    assert kinds(status_with(), [2.0] * 110) == []


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"state": "stalled"}, "stall"),
        ({"state": "no jobs", "jobs": []}, "failure"),
        (
            {"state": "needs a person", "jobs": [], "attempts": [ledger.Attempt("7", 0, verdict="look", reason="x")]},
            "failure",
        ),
        ({"attempts": [ledger.Attempt("7", 0, code=78)]}, "divergence"),
        ({"jobs": [RUNNING, replace(RUNNING, job="9")]}, "duplicate"),
        ({"jobs": [replace(WAITING, reason="BadConstraints")]}, "stuck"),
        ({"free_bytes": 10**9}, "disk"),
    ],
)
def test_what_is_worth_a_word(values: dict[str, Any], kind: str) -> None:
    assert kinds(status_with(**values), limits=Limits(free_bytes=10**10)) == [kind]


def test_divergence_is_a_loss_that_rises_or_is_no_number() -> None:
    steady: list[float | None] = [2.0] * 100
    assert divergence(steady, 1.3) is None
    assert divergence([*steady, *[2.5] * 10], 1.3) is None
    assert divergence([*steady, *[2.7] * 10], 1.3) == "the loss rose from 2.000 to 2.700."
    assert divergence([*steady, *[2.0] * 8, 50.0, 2.0], 1.3) is None, "a single spike is not it"
    assert divergence([*steady, None], 1.3) == "a loss among the last 10 steps is not finite."
    assert divergence([9.0, 8.0, 7.0], 1.3) is None


def test_each_thing_is_told_once_as_long_as_it_lasts(tmp_path: Path) -> None:
    said = tmp_path / "said"
    teller = Teller(f'echo "$PORO_RUN $PORO_ALERT: $PORO_MESSAGE" >> {said}', {})
    stall, disk = Alert("stall", "silent."), Alert("disk", "full.")
    for found in ([stall], [stall, disk], [disk], [stall]):
        teller.tell(status_with(), found)
    assert said.read_text().splitlines() == [
        "runs/mine stall: silent.",
        "runs/mine disk: full.",
        "runs/mine stall: silent.",
    ]


def test_a_command_that_fails_is_tried_again(tmp_path: Path) -> None:
    said = tmp_path / "said"
    teller = Teller(f"echo x >> {said}; exit 1", {})
    for _ in range(2):
        teller.tell(status_with(), [Alert("disk", "full.")])
    assert said.read_text() == "x\nx\n"


def test_watching_once_says_by_its_status_whether_there_is_anything(
    folder: JobFolder, queue: list[QueuedJob], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["watch", str(folder.run), "--command", "true", "--once"]
    assert main(words) == 1, "no job is in the queue"
    queue.append(RUNNING)
    start(folder)
    assert main(words) == 0
    assert main([*words, "--free", "1000T"]) == 1
    assert main([*words, "--free", "much"]) == 2
    assert "--free much is not a count" in capsys.readouterr().err


def test_stop_takes_waiting_jobs_out_and_tells_the_running_one(
    folder: JobFolder, queue: list[QueuedJob], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[tuple[str, object]] = []
    monkeypatch.setattr(slurm, "cancel", lambda jobs: done.append(("cancel", jobs)))
    monkeypatch.setattr(slurm, "tell_to_save", lambda job: done.append(("save", job)))
    queue += [RUNNING, WAITING]
    assert main(["stop", str(folder.run)]) == 0
    assert done == [("cancel", ["8"]), ("save", "7")]
    assert folder.stop_mark.exists()
    assert "job 7 is told to save" in capsys.readouterr().out


def test_resume_lets_a_stopped_run_go_on(
    folder: JobFolder, queue: list[QueuedJob], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(slurm, "submit", lambda script, **options: given.append((script, options)) or "9")
    folder.stop_mark.touch()
    for _ in range(2):
        ledger.append(folder.ledger, "strike", job="7", restart=0, host="nid000001", why="x")
    assert main(["resume", str(folder.run)]) == 0
    assert given == [(folder.script, {"excluded": ["nid000001"], "singleton": True})]
    assert not folder.stop_mark.exists()
    assert main(["resume", str(folder.run), "--forgive"]) == 0
    assert given[1] == (folder.script, {"excluded": [], "singleton": True})
    queue.append(RUNNING)
    assert main(["resume", str(folder.run)]) == 2
    assert "has jobs in the queue (7)" in capsys.readouterr().err


def test_logs_show_the_newest_job(folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(folder.run)]) == 2
    (folder.logs / "7.out").write_text("".join(f"line {n}\n" for n in range(100)))
    assert main(["logs", str(folder.run), "-n", "2"]) == 0
    assert capsys.readouterr().out == "line 98\nline 99\n"
    assert main(["logs", str(folder.run), "--job", "8"]) == 2
    assert "has no output of job 8" in capsys.readouterr().err


def test_slurm_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "sbatch"
    fake.write_text("#!/bin/sh\necho 'sbatch: error: Batch job submission failed: Invalid account' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ConfigError, match="sbatch failed: sbatch: error: .* Invalid account"):
        slurm.submit(tmp_path / "x")
