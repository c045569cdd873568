"""``poro publish`` as a process that can be killed."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from tests.publishing.judging import Ending
from tests.support.hub.server import Hub

LONGEST_SECONDS = 180
MODEL = "poro/toy"


class Publisher:
    """One process.

    Args:
        run: what it publishes.
        hub: where to.
        folder: for what the client keeps between runs, and for the output.
        xet: whether large files go by Xet.
        words: arguments after the run and the repository.
    """

    def __init__(self, run: Path, hub: Hub, folder: Path, *words: str, xet: bool) -> None:
        self._log = folder / "output.txt"
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
        }
        command = [sys.executable, "-m", "megatron_poro.cli.main", "publish", str(run), "--repo", MODEL, *words]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL, now."""
        self._process.kill()

    def kill_after(self, seconds: float) -> threading.Timer:
        """SIGKILL in a while; the timer can be cancelled."""
        timer = threading.Timer(seconds, self.kill)
        timer.daemon = True
        timer.start()
        return timer

    def wait(self) -> Ending:
        """Waits until it has ended.

        Raises:
            AssertionError: with what was printed, if that takes too long; it is killed then.
        """
        try:
            status = self._process.wait(LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
            raise AssertionError(f"still running after {LONGEST_SECONDS} s:\n{self._log.read_text()}") from None
        return Ending(status, self._log.read_text())
