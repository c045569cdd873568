"""A run goes from job to job to its last token, whatever happens to the jobs. On a real Slurm."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.lease import Lease
from tests.slurm.chained_run import REPLICAS, TWO_NODES, ChainedRun
from tests.support.slurm.simulation import wait_for

Make = Callable[..., ChainedRun]


def test_time_limit_saves_and_the_next_job_goes_on(
    chained: Make, undisturbed: dict[str, float], tmp_path: Path
) -> None:
    """Slurm counts in minutes, so the first job is a slow one."""
    saved = tmp_path / "runs" / "toy" / "checkpoints" / "latest"
    run = chained(
        job={**TWO_NODES, "walltime": "00:02:00"},
        changes=REPLICAS,
        step_seconds=9.0,
        site=f"site_task() {{ [[ ! -e {saved} ]] || export PORO_TEST_STEP_SECONDS=0; }}",
        cluster={"signal_seconds": 60, "max_fruitless_jobs": 9},
    )
    run.submit()
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["two"]
    first, *others = run.events("end")
    assert (first["code"], first["leaving"], first["verdict"]) == (ExitCode.STOPPED, "time limit", "continue")
    assert others
    assert others[-1]["verdict"] == "finished"
    assert len({event["job"] for event in run.events("start")}) == len(others) + 1


def test_cancelled_job_is_followed_by_the_next(chained: Make, undisturbed: dict[str, float]) -> None:
    run = chained()
    run.submit()
    run.wait_for_step(13)
    job = run.running()
    run.slurm.run("scancel", job)
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["one"]
    assert [event["job"] for event in run.events("start")] == [job, str(int(job) + 1)]
    assert run.events("end")[0]["reason"] == "cancelled or requeued; saved"


def test_requeues_with_changing_working_directories_repeat_nothing(
    chained: Make, undisturbed: dict[str, float], tmp_path: Path
) -> None:
    run = chained()
    run.submit()
    job = str(min(map(int, run.slurm.jobs())))
    for number, step in enumerate((4, 12, 21, 29, 36)):
        run.wait_for_step(step)
        elsewhere = tmp_path / f"elsewhere_{number}"
        elsewhere.mkdir()
        run.slurm.run("scontrol", "requeue", job, cwd=elsewhere)
        restarts = number + 1
        wait_for(
            lambda restarts=restarts: len(run.events("start")) > restarts,  # type: ignore[misc]
            seconds=600,
            what="restart",
        )
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["one"]
    assert [(event["job"], event["restart"]) for event in run.events("start")] == [(job, n) for n in range(6)]
    assert [list(path.iterdir()) for path in tmp_path.glob("elsewhere_*")] == [[]] * 5


def test_node_that_loses_power_is_left_behind(chained: Make, undisturbed: dict[str, float]) -> None:
    run = chained(job=TWO_NODES, changes=REPLICAS, step_seconds=0.3)
    run.submit()
    run.wait_for_step(12)
    lost = run.hosts()[1]
    run.slurm.node("poweroff", lost)
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["two"]
    first, second = run.events("start")
    assert second["job"] == first["job"], "Slurm starts the same job again"
    assert second["restart"] == 1
    assert lost not in second["hosts"]
    assert second["step"] == 10


def test_killed_slurmd_costs_nothing(chained: Make, undisturbed: dict[str, float]) -> None:
    """Either it is back before Slurm misses it, or the job is started again."""
    run = chained(job=TWO_NODES, changes=REPLICAS, step_seconds=0.3)
    run.submit()
    run.wait_for_step(6)
    host = run.hosts()[1]
    run.slurm.node("kill-slurmd", host)
    time.sleep(3)
    run.slurm.node("start-slurmd", host)
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["two"]


def test_task_that_dies_ends_its_job_and_its_node_gets_a_strike(chained: Make, undisturbed: dict[str, float]) -> None:
    run = chained(job=TWO_NODES, changes=REPLICAS, step_seconds=0.3)
    run.submit()
    run.wait_for_step(12)
    host = run.hosts()[1]
    run.signal_training(host, "KILL")
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["two"]
    assert [event["host"] for event in run.events("strike")] == [host]
    assert run.events("end")[0]["reason"] == f"rank 1 on {host} was ended by signal 9"


def test_task_that_hangs_is_not_waited_for(chained: Make, undisturbed: dict[str, float]) -> None:
    run = chained(job=TWO_NODES, changes=(*REPLICAS, "guards.hang_seconds=20"), step_seconds=0.3)
    run.submit()
    run.wait_for_step(12)
    host = run.hosts()[1]
    run.signal_training(host, "STOP")
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["two"]
    assert run.events("end")[0]["code"] == ExitCode.HUNG
    (strike,) = run.events("strike")
    assert strike["host"] == host
    assert strike["why"].startswith("rank 1 did not get on")


def test_node_with_two_strikes_is_kept_from_the_next_job(chained: Make, undisturbed: dict[str, float]) -> None:
    run = chained(job=TWO_NODES, changes=REPLICAS, step_seconds=0.3)
    run.submit()
    run.wait_for_step(1)
    bad = run.hosts()[1]
    for number, step in enumerate((2, 12), start=1):
        run.wait_for_step(step)
        run.signal_training(bad, "KILL")
        wait_for(lambda number=number: len(run.events("start")) > number, seconds=600, what="next job")  # type: ignore[misc]
    run.wait_until_done()
    run.assert_complete()
    assert [event["host"] for event in run.events("strike")] == [bad, bad]
    assert (run.run_folder / "job" / "exclude").read_text() == bad
    assert bad not in run.events("start")[-1]["hosts"]
    assert run.loss() == undisturbed["two"]


def test_held_job_waits_and_goes_on_when_it_is_released(chained: Make, undisturbed: dict[str, float]) -> None:
    run = chained()
    run.submit()
    run.wait_for_step(5)
    job, following = run.slurm.jobs()
    run.slurm.run("scontrol", "hold", following)
    run.slurm.run("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: run.slurm.jobs() == [following], seconds=300, what="end of the first job")
    status = json.loads(run.poro("status", str(run.run_folder), "--json"))
    ((state, reason),) = [(job["state"], job["reason"]) for job in status["jobs"]]
    assert state == "PENDING"
    assert reason.startswith("JobHeld")  # by root it is held as by an administrator
    run.slurm.run("scontrol", "release", following)
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["one"]


def test_job_that_meets_another_on_the_run_is_followed_by_the_next(
    chained: Make, undisturbed: dict[str, float]
) -> None:
    run = chained(cluster={"max_fruitless_jobs": 99})
    run.run_folder.mkdir(parents=True)
    by_hand = Lease(run.run_folder, seconds=60.0)
    by_hand.acquire()
    run.submit()
    wait_for(lambda: run.events("end"), seconds=300, what="end of the first job")
    by_hand.release()
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["one"]
    first = run.events("end")[0]
    assert (first["code"], first["verdict"], first["reason"]) == (
        ExitCode.IN_USE,
        "continue",
        "another job had the run",
    )
    assert run.events("strike") == []


def test_job_that_cannot_queue_the_next_one_queues_itself(
    chained: Make, undisturbed: dict[str, float], tmp_path: Path
) -> None:
    """As at a limit of jobs per user, which sbatch refuses to pass."""
    sbatch = tmp_path / "programs" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: AssocMaxSubmitJobLimit' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    run = chained(site=f"PATH={sbatch.parent}:$PATH")
    run.submit()
    run.wait_for_step(5)
    job = run.running()
    run.slurm.run("scancel", "--batch", "--signal=USR1", job)
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["one"]
    assert [(event["job"], event["restart"]) for event in run.events("start")] == [(job, 0), (job, 1)]


def test_input_that_is_at_fault_ends_the_chain(chained: Make) -> None:
    run = chained(changes=("engine=local", "tokenizer.path=nowhere"))
    run.submit()
    run.wait_until_done()
    (end,) = run.events("end")
    assert (end["code"], end["verdict"]) == (ExitCode.BAD_INPUT, "look")
    assert run.slurm.jobs() == []


def test_job_after_job_that_fails_ends_the_chain(chained: Make) -> None:
    run = chained(site="site_task() { [[ $1 == job ]] || exit 1; }", cluster={"max_fruitless_jobs": 2})
    run.submit()
    run.wait_until_done()
    assert len(run.events("start")) == 2
    assert "the run needs a person" in run.output()


def test_stopped_run_goes_on_when_it_is_told_to(chained: Make, undisturbed: dict[str, float], tmp_path: Path) -> None:
    run = chained()
    run.submit()
    run.wait_for_step(5)
    run.poro("stop", str(run.run_folder))
    run.wait_until_done()
    assert run.step() < run.steps
    assert run.events("end")[-1]["verdict"] == "stopped"
    assert len(list((run.run_folder / "job" / "logs").iterdir())) == 1, "no other job has started"
    run.poro("resume", str(run.run_folder), cwd=tmp_path.parent)
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["one"]


def test_second_chain_of_a_run_is_refused(chained: Make) -> None:
    run = chained()
    run.submit()
    assert "has jobs in the queue already" in run.submit(check=False)


def test_slurm_is_asked_without_submitting(chained: Make) -> None:
    run = chained()
    assert "to start at" in run.submit("--test-only")
    refused = run.submit("--test-only", "cluster.train.partition=dev-g", "cluster.train.walltime=10:00:00", check=False)
    assert refused.startswith("poro: sbatch failed: ")
    assert run.slurm.jobs() == []
    assert not run.run_folder.exists()
