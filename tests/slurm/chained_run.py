"""A toy run that is submitted to a simulated Slurm with the project's own commands and templates.

Only the site file is the test's: it names CPU settings, where LUMI's names a network.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_poro.metrics import names
from tests.house.checkout import ROOT
from tests.integration.toy import RunOnDisk, ToyCorpora
from tests.support.slurm.simulation import SimulatedSlurm, wait_for

STEPS = 40
TOKENS_PER_STEP = 128
ENOUGH_SECONDS = 900

SITE = """\
srun_options=()
site_setup() {{
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=hsn0 WANDB_MODE=offline HF_HUB_OFFLINE=1
    export PORO_TEST_STEP_SECONDS={step_seconds}
}}
site_task() {{ :; }}
{extra}
"""

ONE_NODE: dict[str, Any] = {"nodes": 1, "tasks_per_node": 1}
TWO_NODES: dict[str, Any] = {"nodes": 2, "tasks_per_node": 1}
LOCAL = ("engine=local",)
REPLICAS = ("engine=deepspeed", "engine.truth_check=off")


@dataclass
class ChainedRun:
    """A toy run on a simulated cluster.

    Attributes:
        slurm: the cluster.
        corpora: what it reads.
        folder: of the test: configs, and the runs.
        changes: words that change the toy run.
        job: what each job asks for.
        cluster: other keys of the cluster's config.
        step_seconds: least duration of a step.
        site: more shell for the site file.
    """

    slurm: SimulatedSlurm
    corpora: ToyCorpora
    folder: Path
    changes: tuple[str, ...] = LOCAL
    job: dict[str, Any] = field(default_factory=lambda: ONE_NODE)
    cluster: dict[str, Any] = field(default_factory=dict)
    step_seconds: float = 0.1
    site: str = ""
    steps: int = STEPS

    @property
    def run_folder(self) -> Path:
        """Where the run is."""
        return self.folder / "runs" / "toy"

    @property
    def on_disk(self) -> RunOnDisk:
        """What the run has written."""
        return RunOnDisk(self.folder / "runs")

    def poro(self, *words: str, cwd: Path | None = None, check: bool = True) -> str:
        """Types a command; what it prints on stdout, and on stderr if it fails."""
        done = self.slurm.run(
            "env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "megatron_poro.cli.main", *words,
            cwd=cwd or self.folder, check=check,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else done.stderr

    def submit(self, *more: str, check: bool = True) -> str:
        """Submits the run."""
        self.write_cluster()
        toy = self.corpora.arguments(
            self.folder / "runs",
            f"schedule.total_tokens={self.steps * TOKENS_PER_STEP}",
            "checkpoint.every_steps=10",
            *self.changes,
        )
        return self.poro("submit", *self.on_cluster, *toy, *more, check=check)

    @property
    def on_cluster(self) -> tuple[str, ...]:
        """Words that choose the simulated cluster."""
        return ("--config-dir", str(self.folder / "configs"), "cluster=sim")

    def write_cluster(self) -> None:
        """Writes what :attr:`on_cluster` names; ``submit`` does it by itself."""
        configs = self.folder / "configs"
        for name in ("cluster", "sites"):
            (configs / name).mkdir(parents=True, exist_ok=True)
        python = self.folder / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/slurm/slow_steps.py" "$@"\n')
        python.chmod(0o755)
        values = {
            "defaults": ["cluster_schema"],
            "site": "sim",
            "account": "project_465000000",
            "train": {
                "partition": "standard-g", "walltime": "00:30:00", "cpus_per_task": 7, "gpus_per_node": 8,
                "memory": "480G", "exclusive": True, **self.job,
            },
            "export": {"partition": "small", "walltime": "00:30:00", "cpus_per_task": 2},
            "python": str(python),
            "signal_seconds": 30,
            "startup_seconds": 10,
            "preflight": False,
            "min_shared_memory_bytes": 0,
            **self.cluster,
        }  # fmt: skip
        (configs / "cluster" / "sim.yaml").write_text(yaml.safe_dump(values))
        (configs / "sites" / "sim.sh").write_text(SITE.format(step_seconds=self.step_seconds, extra=self.site))

    def signal_training(self, host: str, signal: str) -> None:
        """Sends a signal to the training command of a node, and only that: its task script gets none."""
        found = self.slurm.node("exec", host, "pgrep", "-f", "slow_steps.py -m megatron_poro.cli.main train")
        self.slurm.node("exec", host, "kill", f"-{signal}", *found.stdout.split())

    # --- looking ---

    def step(self) -> int:
        """The newest step in the metrics."""
        path = self.run_folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        try:
            return int(json.loads(lines[-1])[names.STEP.key]) if lines else 0
        except ValueError:  # the line is being written
            return 0

    def wait_for_step(self, step: int) -> None:
        """Waits until the run has come so far."""
        wait_for(lambda: self.step() >= step, seconds=ENOUGH_SECONDS, what=f"step {step}: {self.output()}")

    def wait_until_done(self) -> None:
        """Waits until no job is left."""
        wait_for(lambda: not self.slurm.jobs(), seconds=ENOUGH_SECONDS, what=f"end of the jobs: {self.output()}")

    def running(self) -> str:
        """The number of the job that runs."""
        (job,) = self.slurm.jobs("RUNNING")
        return job

    def hosts(self) -> list[str]:
        """Nodes of the job that runs."""
        nodelist = self.slurm.run("squeue", "--noheader", f"--jobs={self.running()}", "--format=%N").stdout.strip()
        return self.slurm.run("scontrol", "show", "hostnames", nodelist).stdout.split()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Lines of one kind in the ledger."""
        lines = (self.run_folder / "job" / "ledger.jsonl").read_text().splitlines()
        return [event for line in lines if (event := json.loads(line))["event"] == kind]

    def output(self) -> str:
        """What all jobs printed."""
        logs = sorted((self.run_folder / "job" / "logs").glob("*.out"), key=lambda path: int(path.stem))
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in logs)

    def loss(self) -> float:
        """Loss of the last step."""
        return float(self.on_disk.lines()[-1][names.LOSS.key])

    def assert_complete(self) -> None:
        """The run reached its last step, no step is missing or there twice, and it has one folder."""
        steps = [line[names.STEP.key] for line in self.on_disk.lines()]
        assert steps == list(range(1, self.steps + 1)), self.output()
        assert self.on_disk.steps()[-1] == self.steps
        assert [path.name for path in (self.folder / "runs").iterdir()] == ["toy"]
        assert not (self.folder / "outputs").exists()
        assert self.slurm.jobs() == []
