"""``python -m tests.slurm --minutes M --seed S``: runs on a real Slurm to which something happens again and again.

In the first trial the job is requeued twenty times, each time from another working directory. Each other trial has a
seed of its own: at random moments the job is requeued, cancelled or told to save, a process is killed, or a node loses
power. In the end the run must be complete: every step once, one run folder, and the last loss bit for bit that of a run
that was left in peace.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.toy import ToyCorpora
from tests.slurm.chained_run import REPLICAS, TWO_NODES, ChainedRun
from tests.support.slurm.simulation import reason_not_to_start, simulated_slurm, wait_for


def requeue(run: ChainedRun, chance: random.Random) -> None:
    run.slurm.run("scontrol", "requeue", run.running(), check=False)


def cancel(run: ChainedRun, chance: random.Random) -> None:
    run.slurm.run("scancel", run.running(), check=False)


def tell_to_save(run: ChainedRun, chance: random.Random) -> None:
    run.slurm.run("scancel", "--batch", "--signal=USR1", run.running(), check=False)


def kill_a_process(run: ChainedRun, chance: random.Random) -> None:
    run.signal_training(chance.choice(run.hosts()), "KILL")


def cut_power(run: ChainedRun, chance: random.Random) -> None:
    host = chance.choice(run.hosts())
    run.slurm.node("poweroff", host)
    time.sleep(chance.uniform(0, 30))
    run.slurm.node("poweron", host)


REQUEUES = 20

EVENTS: tuple[Callable[[ChainedRun, random.Random], None], ...] = (
    requeue,
    cancel,
    tell_to_save,
    kill_a_process,
    cut_power,
)


def is_under_way(run: ChainedRun) -> bool:
    """Whether a job runs that has noted its start: one that is cancelled before ends the chain, as it must."""
    running = run.slurm.jobs("RUNNING")
    ledger = run.run_folder / "job" / "ledger.jsonl"
    return bool(running) and ledger.exists() and [e["job"] for e in run.events("start")][-1:] == running


def trial(run: ChainedRun, seed: int, *, events: int) -> list[str]:
    """Lets things happen to a run until it is complete; returns what happened, in order."""
    chance = random.Random(seed)
    happened = []
    run.submit()
    for _ in range(events):
        step = chance.randrange(run.steps)
        wait_for(
            lambda step=step: (is_under_way(run) and run.step() >= step) or not run.slurm.jobs(),  # type: ignore[misc]
            seconds=900,
            what=f"step {step}: {run.output()}",
        )
        if not run.slurm.jobs("RUNNING"):
            break
        event = chance.choice(EVENTS)
        happened.append(f"{event.__name__} at {run.step()}")
        event(run, chance)
        time.sleep(2)
    run.wait_until_done()
    run.assert_complete()
    return happened


def requeued(run: ChainedRun, times: int) -> None:
    """Requeues the job of a run so many times, evenly over its steps, each time from another working directory."""
    run.submit()
    for number in range(times):
        wait_for(
            lambda number=number: is_under_way(run) and run.step() > number * (run.steps - 2) // times,  # type: ignore[misc]
            seconds=900,
            what=f"start {number}: {run.output()}",
        )
        elsewhere = run.folder / f"elsewhere_{number}"
        elsewhere.mkdir()
        run.slurm.run("scontrol", "requeue", run.running(), cwd=elsewhere)
        wait_for(
            lambda number=number: len(run.events("start")) > number + 1,  # type: ignore[misc]
            seconds=900,
            what=f"start after requeue {number}: {run.output()}",
        )
    run.wait_until_done()
    run.assert_complete()
    assert len(run.events("start")) == times + 1
    assert len({event["job"] for event in run.events("start")}) == 1, "Slurm starts the same job again"
    assert not [path for folder in run.folder.glob("elsewhere_*") for path in folder.iterdir()]


def main() -> int:
    """Runs trials until the time is over; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    reason = reason_not_to_start()
    if reason is not None:
        print(reason)
        return 1
    end = time.monotonic() + 60 * arguments.minutes
    with (
        tempfile.TemporaryDirectory(prefix="poro-slurm-", ignore_cleanup_errors=True) as state,
        tempfile.TemporaryDirectory(prefix="poro-trials-") as work,
        simulated_slurm(Path(state), nodes=3) as slurm,
    ):
        corpora = ToyCorpora.make(Path(work) / "corpora")

        def fresh(name: str, step_seconds: float) -> ChainedRun:
            slurm.clear()
            folder = Path(work) / name
            folder.mkdir()
            cluster = {"max_fruitless_jobs": 99}
            return ChainedRun(
                slurm, corpora, folder, job=TWO_NODES, changes=REPLICAS, cluster=cluster, step_seconds=step_seconds
            )

        control = fresh("control", 0.0)
        trial(control, 0, events=0)

        def passes(name: str, happens: Callable[[ChainedRun], list[str]]) -> bool:
            run = fresh(name.replace(" ", "_"), 0.3)
            try:
                happened = happens(run)
                assert run.loss() == control.loss(), f"{run.loss()} is not {control.loss()}"
            except AssertionError as error:
                print(f"{name} FAILED: {error}", flush=True)
                return False
            print(f"{name}: {len(run.events('start'))} starts: {', '.join(happened)}", flush=True)
            return True

        def requeues(run: ChainedRun) -> list[str]:
            requeued(run, REQUEUES)
            return [f"requeued {REQUEUES} times"]

        trials, failed = 1, int(not passes("requeues", requeues))
        while time.monotonic() < end:
            seed = arguments.seed + trials - 1
            failed += not passes(f"seed {seed}", lambda run, seed=seed: trial(run, seed, events=6))  # type: ignore[misc]
            trials += 1
    print(f"{trials} trials, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
