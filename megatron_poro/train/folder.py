"""The folder of a run: what is where in it, and that one job at a time uses it."""

import errno
import fcntl
from pathlib import Path
from typing import IO

from megatron_poro.checkpoint.locating import CHECKPOINTS_FOLDER
from megatron_poro.checkpoint.store import write_durably
from megatron_poro.config.load import to_yaml
from megatron_poro.config.run import RunSection, TrainConfig
from megatron_poro.errors import ConfigError
from megatron_poro.logs import get_logger

logger = get_logger(__name__)


class RunFolder:
    """``<run.root>/<run.name>``.

    Attributes:
        path: the folder itself.
    """

    def __init__(self, section: RunSection) -> None:
        self.path = Path(section.root) / section.name
        # a file object, not a descriptor: a run that fails while it is built lets go of the folder as it is forgotten
        self._lock: IO[bytes] | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINTS_FOLDER

    @property
    def metrics(self) -> Path:
        """The metrics of every logged step, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def resolved_config(self) -> Path:
        """The configuration of the run as it was last started."""
        return self.path / "resolved.yaml"

    def claim(self) -> None:
        """Makes the folder and holds it until :meth:`release` or the end of the process. One process calls it.

        A job that is started again by a scheduler can meet the one it replaces, and two writers would spoil both.

        Raises:
            ConfigError: if the folder cannot be made, or another job holds it.
        """
        lock = self.path / ".lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock.open("ab")
        except OSError as error:
            raise ConfigError(
                f"run folder {self.path} cannot be made ({error.strerror}); choose another run.root."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                logger.warning("%s cannot be locked (%s); take care that only one job uses it.", lock, error.strerror)
                return
            raise ConfigError(
                f"run folder {self.path} is in use by another job; wait until it has ended, or choose another run.name."
            ) from error

    def write_config(self, config: TrainConfig) -> None:
        """Writes ``resolved.yaml``, whole or not at all. One process calls it."""
        write_durably(self.resolved_config, to_yaml(config).encode())

    def release(self) -> None:
        """Lets another job use the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
