"""The ledger of a run's jobs, and what is decided from it."""

import json
import os
from pathlib import Path

import pytest

from megatron_poro.cli.main import main
from megatron_poro.cluster import chain, ledger
from megatron_poro.cluster.chain import Failure
from megatron_poro.cluster.job_folder import JobFolder, JobSettings, job_name
from megatron_poro.cluster.templates import slurm_folder
from megatron_poro.config.load import load_config
from megatron_poro.errors import ConfigError
from megatron_poro.train.exit_code import ExitCode

LAST_STEP = 80


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    """The jobs of a run that was submitted; checkpoints are what a test says they are."""
    jobs = JobFolder(tmp_path / "mine")
    settings = JobSettings(
        name="mine-1", nodes=16, tasks_per_node=1, gpus_per_node=0, max_fruitless_jobs=3, devices_per_module=1,
        interfaces=[], min_shared_memory_bytes=0, min_free_bytes=0, slow_factor=2.0, preflight_network=False,
        working_folder=str(tmp_path),
    )  # fmt: skip
    config = load_config(["experiment=smoke_cpu", "parallel=single", "engine.microbatch_samples=1"])
    jobs.write(config, settings, script="#!/bin/sh\n", site=slurm_folder() / "sites" / "generic.sh")
    saved(monkeypatch, 0)
    return jobs


def saved(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr(chain, "saved_step", lambda run: step)


def begin(folder: JobFolder, job: int = 1, restart: int = 0) -> str:
    return chain.begin(folder, job=str(job), restart=restart, hosts=["a", "b"])


def end(
    folder: JobFolder, job: int = 1, restart: int = 0, *, code: int | None = 75, failures: tuple[Failure, ...] = (),
    leaving: str = "",
) -> str:  # fmt: skip
    return chain.end(folder, job=str(job), restart=restart, code=code, failures=failures, leaving=leaving)


def test_a_run_goes_on_until_its_last_step_is_saved(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begin(folder, 1) == chain.GO
    saved(monkeypatch, 40)
    assert end(folder, 1, leaving="time limit") == chain.CONTINUE
    assert begin(folder, 2) == chain.GO
    saved(monkeypatch, LAST_STEP)
    assert end(folder, 2, code=0) == chain.FINISHED
    assert begin(folder, 3) == chain.FINISHED
    first, second = ledger.read(folder.ledger).attempts
    assert (first.start_step, first.end_step, first.reason) == (0, 40, "time limit; saved")
    assert (second.start_step, second.end_step, second.reason) == (40, LAST_STEP, "ended as it should")


def test_a_run_that_was_stopped_does_not_start(folder: JobFolder) -> None:
    begin(folder, 1)
    folder.stop_mark.touch()
    assert end(folder, 1) == chain.STOPPED
    assert begin(folder, 2) == chain.STOPPED


def test_a_command_that_was_stopped_by_its_control_file_is_not_started_again(folder: JobFolder) -> None:
    begin(folder)
    assert end(folder, code=ExitCode.FINISHED) == chain.STOPPED


@pytest.mark.parametrize("code", [ExitCode.BAD_INPUT, ExitCode.DIVERGED, ExitCode.REPLICAS_DIFFER])
def test_what_would_come_to_the_same_again_needs_a_person(folder: JobFolder, code: ExitCode) -> None:
    begin(folder)
    assert end(folder, code=code, failures=(Failure(1.0, "a", 0, code),)) == chain.LOOK
    assert ledger.read(folder.ledger).strikes == {}


@pytest.mark.parametrize("code", [ExitCode.BUG, ExitCode.HUNG, ExitCode.LOST_PEER, ExitCode.IN_USE, 137, None])
def test_what_may_be_better_next_time_is_tried_again_but_not_for_ever(folder: JobFolder, code: int | None) -> None:
    verdicts = []
    for job in range(1, 4):
        assert begin(folder, job) == chain.GO
        verdicts.append(end(folder, job, code=code))
    assert verdicts == [chain.CONTINUE, chain.CONTINUE, chain.LOOK]
    assert [attempt.verdict for attempt in ledger.read(folder.ledger).attempts] == verdicts
    assert begin(folder, 4) == chain.LOOK
    ledger.append(folder.ledger, "resume", forgive=False)
    assert begin(folder, 5) == chain.GO


def test_a_newer_checkpoint_begins_the_count_anew(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for job in range(1, 8):
        assert begin(folder, job) == chain.GO
        saved(monkeypatch, 10 * (job // 2))
        assert end(folder, job, code=1) == chain.CONTINUE


def test_jobs_that_slurm_starts_again_are_not_failures(folder: JobFolder) -> None:
    for restart in range(20):
        assert begin(folder, 1, restart) == chain.GO


def test_jobs_that_end_without_a_word_are_failures(folder: JobFolder) -> None:
    for job in range(1, 4):
        assert begin(folder, job) == chain.GO
    assert begin(folder, 4) == chain.LOOK


def test_the_node_that_failed_first_gets_the_strike(folder: JobFolder) -> None:
    begin(folder)
    failures = (Failure(9.0, "a", 0, ExitCode.LOST_PEER), Failure(3.5, "c", 9, 137), Failure(3.0, "b", 7, 143))
    end(folder, code=77, failures=failures)
    assert ledger.read(folder.ledger).strikes == {"c": ["rank 9 was ended by signal 9 in job 1"]}
    assert ledger.read(folder.ledger).attempts[0].reason == "rank 9 on c was ended by signal 9"


@pytest.mark.parametrize(
    ("delaying", "strikes"),
    [
        ("1\n", {"b": ["rank 1 did not get on in job 1"]}),
        ("", {}),
        ("0\n1\n", {}),  # not one node's doing
    ],
    ids=["one", "nobody can tell", "two"],
)
def test_the_node_that_the_others_waited_for_gets_the_strike(
    folder: JobFolder, delaying: str, strikes: dict[str, list[str]]
) -> None:
    begin(folder)
    hang = folder.run / "stacks" / "hang_s"
    hang.mkdir(parents=True)
    (hang / "delaying.txt").write_text(delaying)
    # the one that was stopped went on when it was told to leave, and failed in some way
    end(folder, code=76, failures=(Failure(1.0, "b", 1, 1), Failure(1.1, "a", 0, ExitCode.HUNG)))
    assert ledger.read(folder.ledger).strikes == strikes


def test_no_node_is_to_blame_for_a_run_that_another_job_had(folder: JobFolder) -> None:
    begin(folder)
    end(folder, code=ExitCode.IN_USE, failures=(Failure(1.0, "a", 0, ExitCode.IN_USE),))
    assert ledger.read(folder.ledger).strikes == {}
    assert ledger.read(folder.ledger).attempts[0].reason == "another job had the run"


def test_a_hang_of_an_earlier_job_is_forgotten(folder: JobFolder) -> None:
    old = folder.run / "stacks" / "hang_s" / "delaying.txt"
    old.parent.mkdir(parents=True)
    old.write_text("1\n")
    os.utime(old, (1.0, 1.0))
    begin(folder)
    end(folder, code=76, failures=(Failure(1.1, "a", 0, ExitCode.HUNG),))
    assert ledger.read(folder.ledger).strikes == {}


def test_no_node_is_to_blame_for_a_job_that_was_told_to_leave(folder: JobFolder) -> None:
    begin(folder)
    end(folder, code=None, failures=(Failure(1.0, "a", 0, 137),), leaving="cancelled")
    assert ledger.read(folder.ledger).strikes == {}


def test_two_strikes_keep_a_node_out(folder: JobFolder) -> None:
    for job in (1, 2):
        begin(folder, job)
        end(folder, job, code=77, failures=(Failure(1.0, "nid000007", 3, 137),))
        assert folder.exclude.read_text() == ("" if job == 1 else "nid000007")
    ledger.append(folder.ledger, "resume", forgive=True)
    chain.write_excluded(folder)
    assert folder.exclude.read_text() == ""


def test_more_bad_nodes_than_there_can_be_are_not_the_nodes_fault() -> None:
    history = ledger.History([], {f"n{index}": ["x", "y"] for index in range(9)})
    assert history.excluded(2) == ["n0"]
    assert history.excluded(16) == ["n0", "n1"]
    assert len(history.excluded(128)) == 9


def test_job_scripts_find_the_answer_in_a_file(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = folder.path / "attempts" / "7.1"
    attempt.mkdir(parents=True)
    words = ["--attempt", str(attempt)]
    assert main(["job", "begin", "--job", "7", "--restart", "1", "--hosts", "a,b", *words]) == 0
    assert (attempt / "verdict").read_text() == "go\n"
    (attempt / "train.code").write_text("75\n")
    (attempt / "train.failures").write_text("3.0 b 1 137\n")
    assert main(["job", "end", "--status", "1", "--leaving", "", *words]) == 0
    assert (attempt / "verdict").read_text() == "continue\n"
    (one,) = ledger.read(folder.ledger).attempts
    assert (one.job, one.restart, one.hosts, one.code) == ("7", 1, ["a", "b"], 75)
    assert ledger.read(folder.ledger).strikes == {"b": ["rank 1 was ended by signal 9 in job 7"]}


def test_failures_are_read_as_tasks_write_them(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("1795452254.747626 nid005000 2 1\n1795452254,961398 nid005001 5 143\ncut sho")
    assert chain.read_failures(tmp_path / "f") == [
        Failure(1795452254.747626, "nid005000", 2, 1),
        Failure(1795452254.961398, "nid005001", 5, 143),
    ]
    assert chain.read_failures(tmp_path / "none") == []


def test_a_line_that_was_cut_short_is_passed_over(folder: JobFolder) -> None:
    begin(folder)
    with folder.ledger.open("a") as file:
        file.write('{"event": "sta')
    assert len(ledger.read(folder.ledger).attempts) == 1
    assert json.loads(folder.ledger.read_text().splitlines()[0])["hosts"] == ["a", "b"]


def test_a_folder_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not the folder of a run that was submitted"):
        JobFolder.at(tmp_path)


def test_runs_of_one_name_in_two_places_have_jobs_of_two_names() -> None:
    assert job_name(Path("/a/mine")) != job_name(Path("/b/mine"))
    assert job_name(Path("/a/mine")).startswith("mine-")
