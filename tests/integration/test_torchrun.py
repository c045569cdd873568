"""Training under a real torchrun: the local launcher works, and one process that fails takes the others with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_poro
from megatron_poro.metrics import names
from tests.integration.toy import STEPS, RunOnDisk, ToyCorpora

ROOT = Path(megatron_poro.__file__).parents[1]
TWO = ("engine=deepspeed", "engine.microbatch_samples=2", "parallel.tensor=2", "engine.truth_check=off")
ENOUGH_SECONDS = 240


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}


def _torchrun(script: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        script,
        *arguments,
    ]
    return subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=ENOUGH_SECONDS, check=False
    )


def test_local_launcher_trains_on_two_processes(corpora: ToyCorpora, tmp_path: Path) -> None:
    command = [str(ROOT / "launch" / "run_local.sh"), "2", *corpora.arguments(tmp_path, *TWO)]
    done = subprocess.run(
        command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, timeout=ENOUGH_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("step ")][-1].startswith(
        f"step {STEPS}/{STEPS}"
    )
    assert RunOnDisk(tmp_path).steps() == [STEPS]


@pytest.mark.parametrize("wrong", [[], ["0"], ["experiment=smoke_cpu"]])
def test_local_launcher_says_how_it_is_used(wrong: list[str]) -> None:
    done = subprocess.run(
        [str(ROOT / "launch" / "run_local.sh"), *wrong], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_process_that_fails_takes_the_others_with_it(corpora: ToyCorpora, tmp_path: Path) -> None:
    done = _torchrun(
        "tests/integration/crash_one_rank.py",
        corpora.arguments(tmp_path, *TWO, "checkpoint.every_steps=1", "checkpoint.asynchronous=false"),
    )
    assert done.returncode != 0
    assert "[rank 1] RuntimeError: a cable was pulled" in done.stderr
    run = RunOnDisk(tmp_path)
    assert run.steps() == [1, 2]
    assert [line[names.STEP.key] for line in run.lines()] == [1, 2]


TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "launch.train",
)
LOCAL_LAUNCHER = (str(ROOT / "launch" / "run_local.sh"), "2")


@pytest.mark.parametrize(("command", "number"), [(TORCHRUN, signal.SIGTERM), (LOCAL_LAUNCHER, signal.SIGUSR1)])
def test_launcher_that_is_told_to_end_leaves_a_checkpoint(
    corpora: ToyCorpora, tmp_path: Path, command: tuple[str, ...], number: signal.Signals
) -> None:
    """What a scheduler does at the end of a job's time: the launcher gets a signal and passes it on."""
    long = [a for a in corpora.arguments(tmp_path, *TWO) if not a.startswith("schedule.total_tokens")]
    with subprocess.Popen(
        [*command, *long, "schedule.total_tokens=200k"], cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        try:
            for line in job.stdout:
                if line.startswith("step ") and line.split()[1].startswith("3/"):
                    job.send_signal(number)
                    break
            job.stdout.read()
            assert job.wait(ENOUGH_SECONDS) != 0
        finally:
            job.terminate()  # its processes too, where the test has failed
    run = RunOnDisk(tmp_path)
    steps = [line[names.STEP.key] for line in run.lines()]
    assert run.steps() == [steps[-1]]
    assert steps == list(range(1, steps[-1] + 1))
