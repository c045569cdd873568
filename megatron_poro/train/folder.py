"""The folder of a run: what is where in it, and that one job at a time uses it."""

import shutil
from pathlib import Path

from megatron_poro.checkpoint.locating import CHECKPOINTS_FOLDER
from megatron_poro.checkpoint.store import write_durably
from megatron_poro.config.load import to_yaml
from megatron_poro.config.run import RunSection, TrainConfig
from megatron_poro.errors import ConfigError
from megatron_poro.logs import get_logger
from megatron_poro.metrics.sinks import METRICS_NAME
from megatron_poro.train.control import ControlFiles, Notice
from megatron_poro.train.lease import Lease, LeaseLostError

logger = get_logger(__name__)


class RunFolder:
    """``<run.root>/<run.name>``.

    Args:
        path: the folder itself.
        lease_seconds: how long a job that holds it may give no sign before another machine takes it over.
        job: number of the scheduler's job, for messages.

    Attributes:
        path: the folder itself.
    """

    def __init__(self, path: Path, *, lease_seconds: float = 60.0, job: str | None = None) -> None:
        self.path = path
        self._lease_seconds = lease_seconds
        self._job = job
        self._lease: Lease | None = None

    @classmethod
    def of(cls, section: RunSection, *, job: str | None = None) -> "RunFolder":
        """The folder that a config names."""
        return cls(Path(section.root) / section.name, lease_seconds=section.lease_seconds, job=job)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINTS_FOLDER

    @property
    def metrics(self) -> Path:
        """The metrics of every logged step, one JSON object per line."""
        return self.path / METRICS_NAME

    @property
    def profile(self) -> Path:
        """Where the time of the profiled steps went; there once ``profile.steps`` have been taken."""
        return self.path / "profile"

    @property
    def control(self) -> ControlFiles:
        """Where a person asks something of the run."""
        return ControlFiles(self.path / "control")

    @property
    def resolved_config(self) -> Path:
        """The configuration of the run as it was last started."""
        return self.path / "resolved.yaml"

    def claim(self) -> None:
        """Makes the folder and holds it until :meth:`release` or the end of the process. One process calls it.

        A job that is started again by a scheduler can meet the one it replaces, and two writers would spoil both.

        Raises:
            ConfigError: if the folder cannot be made.
            RunInUseError: if another job holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lease = Lease(self.path, seconds=self._lease_seconds, job=self._job)
            may_wake_up = lease.acquire()
            self._lease = lease
            if may_wake_up:
                self._shut_out()
        except OSError as error:
            raise ConfigError(
                f"run folder {self.path} cannot be made ({error.strerror}); choose another run.root."
            ) from error

    def require_held(self) -> None:
        """Called before a commit by the process that claimed the folder; the others return at once.

        Raises:
            LeaseLostError: if another job has taken the folder over.
        """
        if self._lease is not None:
            self._lease.require_held()

    def notice(self) -> Notice:
        """Tells the other processes if the folder is lost."""
        return Notice.LEASE_LOST if self._lease is not None and self._lease.is_lost() else Notice(0)

    def require_ours(self, agreed: Notice) -> None:
        """Ends all processes of a job that has lost the folder.

        Args:
            agreed: what all processes told each other (:meth:`notice` is part of it).

        Raises:
            LeaseLostError: on all of them, if it is lost.
        """
        if Notice.LEASE_LOST in agreed:
            raise LeaseLostError(
                f"run folder {self.path} was taken over by another job while this one gave no sign for longer than "
                "run.lease_seconds; this job writes nothing more to it."
            )

    def write_config(self, config: TrainConfig) -> None:
        """Writes ``resolved.yaml``, whole or not at all. One process calls it."""
        write_durably(self.resolved_config, to_yaml(config).encode())

    def release(self) -> None:
        """Lets another job use the folder."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _shut_out(self) -> None:
        """Takes away what the holder before us, if it should wake up, would write to.

        A checkpoint it is about to commit: its rename finds nothing. The metrics: its lines go to a file of no name.
        """
        for staged in self.checkpoints.glob("*.tmp"):
            shutil.rmtree(staged, ignore_errors=True)
        if self.metrics.exists():
            write_durably(self.metrics, self.metrics.read_bytes())
