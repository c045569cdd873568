"""``<run folder>/job``: what the jobs of a run read, and what they note.

::

    config.yaml        the whole config of the run, as it was when it was submitted
    cluster.json       what the jobs must know of the cluster
    train.sbatch       the job script; every job of the run is this file
    task.sh site.sh inside.sh
    logs/              output, a file for each job
    ledger.jsonl       one line for each start, end and strike
    exclude            nodes that a job must not get, as Slurm writes them
    stop               there while the run is not to go on
    attempts/          <job>.<restart>/: notes of one start of a job

It is copied once, when the run is submitted, so that a change of the checkout does not change jobs that are queued.
"""

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_poro.checkpoint.store import write_durably
from megatron_poro.cluster.templates import slurm_folder
from megatron_poro.config.load import from_yaml, to_yaml
from megatron_poro.config.run import TrainConfig
from megatron_poro.errors import ConfigError

COPIED = ("task.sh", "inside.sh")
JOB_FOLDER = "job"


@dataclass(frozen=True)
class JobSettings:
    """What the jobs must know of the cluster after they were submitted; the fields are those of ``ClusterConfig``.

    Attributes:
        name: the name that Slurm knows the run's jobs by; no other run of this user has it.
        nodes: nodes of each job.
        tasks_per_node: processes on each of them.
    """

    name: str
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    max_fruitless_jobs: int
    devices_per_module: int
    interfaces: list[str]
    min_shared_memory_bytes: int
    min_free_bytes: int
    slow_factor: float
    preflight_network: bool
    working_folder: str


class JobFolder:
    """The folder of a run's jobs.

    Attributes:
        run: the run folder.
        path: the folder itself.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / JOB_FOLDER

    @classmethod
    def at(cls, path: Path | str) -> "JobFolder":
        """The jobs of a run, given its folder or the folder of the jobs.

        Raises:
            ConfigError: if the run was never submitted.
        """
        path = Path(path)
        for run in (path, path.parent if path.name == JOB_FOLDER else path):
            if (run / JOB_FOLDER / "cluster.json").is_file():
                return cls(run)
        raise ConfigError(
            f"{path} is not the folder of a run that was submitted: there is no {JOB_FOLDER}/cluster.json."
        )

    @property
    def script(self) -> Path:
        """The job script."""
        return self.path / "train.sbatch"

    @property
    def logs(self) -> Path:
        """The output of the jobs."""
        return self.path / "logs"

    @property
    def ledger(self) -> Path:
        """Starts, ends and strikes."""
        return self.path / "ledger.jsonl"

    @property
    def exclude(self) -> Path:
        """Nodes that a job must not get."""
        return self.path / "exclude"

    @property
    def stop_mark(self) -> Path:
        """There while the run is not to go on."""
        return self.path / "stop"

    def config(self) -> TrainConfig:
        """The config of the run; raises ``ConfigError`` if it cannot be read."""
        return from_yaml(self.path / "config.yaml")

    def settings(self) -> JobSettings:
        """What was submitted.

        Raises:
            ConfigError: if it cannot be read.
        """
        try:
            values: Any = json.loads((self.path / "cluster.json").read_text(encoding="utf-8"))
            return JobSettings(**values)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{self.path / 'cluster.json'} cannot be read ({error}); submit the run again."
            ) from error

    def write(self, config: TrainConfig, settings: JobSettings, *, script: str, site: Path) -> None:
        """Puts everything there that a job reads, each file whole or not at all.

        Raises:
            ConfigError: if the folder is not writable.
        """
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            for name in COPIED:
                self._copy(slurm_folder() / name, name)
            self._copy(site, "site.sh")
            write_durably(self.path / "config.yaml", to_yaml(config).encode())
            write_durably(
                self.path / "cluster.json", (json.dumps(dataclasses.asdict(settings), indent=1) + "\n").encode()
            )
            write_durably(self.script, script.encode())
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written ({error.strerror}); choose another run.root.") from error

    def _copy(self, source: Path, name: str) -> None:
        """Replaces a file by a rename: a job that is running goes on reading the old one."""
        partial = self.path / f"{name}.partial"
        shutil.copyfile(source, partial)
        partial.chmod(0o755)
        partial.replace(self.path / name)


def job_name(run: Path) -> str:
    """A name for the jobs of a run. Two runs of one name in different places must not wait for each other."""
    return f"{run.name}-{hashlib.sha256(str(run).encode()).hexdigest()[:6]}"
