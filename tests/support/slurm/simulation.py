"""A real Slurm of several nodes on this machine, for tests: Debian's slurmctld and slurmd, a namespace for each node.

``start_slurm.sh`` beside this file does the work and needs root. What cannot be started is a reason, in words.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "nsenter": "util-linux",
}
"""Commands that are needed, and the Debian package each comes in."""


def reason_not_to_start() -> str | None:
    """Why no Slurm can be started here; ``None`` if one can."""
    if os.geteuid() != 0:
        return "real Slurm needs root, for namespaces and virtual links"
    places = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])  # a user's PATH may leave out the last two
    missing = sorted({package for command, package in PACKAGES.items() if shutil.which(command, path=places) is None})
    if missing:
        return f"real Slurm needs Debian packages: apt-get install --no-install-recommends {' '.join(missing)}"
    namespaces = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "true"], check=False
    )
    return "real Slurm needs namespaces, which are not allowed here" if namespaces.returncode else None


@dataclass(frozen=True)
class SimulatedSlurm:
    """A cluster that runs.

    Attributes:
        folder: its state and logs.
    """

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a user's shell would have."""
        return {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "SLURM_CONF": str(self.folder / "etc" / "slurm.conf"),
        }

    def run(self, *command: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command as a user at the login node."""
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def jobs(self, state: str | None = None) -> list[str]:
        """Numbers of the jobs in the queue, oldest first."""
        words = ["squeue", "--noheader", "--format=%A", *([f"--states={state}"] if state else [])]
        return sorted(self.run(*words).stdout.split(), key=int)

    def node(self, command: str, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Does something to a node: ``poweroff``, ``poweron``, ``exec``, ``unplug``, ... (``slurm-node --help``)."""
        return self.run("slurm-node", command, name, *words, check=False)

    def clear(self) -> None:
        """Ends all jobs and switches on what is off."""
        while jobs := self.jobs():
            self.run("scancel", *jobs, check=False)
            time.sleep(0.5)
        for line in self.run("slurm-node", "list").stdout.splitlines():
            if line.endswith(" off"):
                self.node("poweron", line.split()[0])
        wait_for(self._all_idle, seconds=90, what="idle nodes")

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--format=%T").stdout.split()
        return set(states) == {"idle"}


def wait_for(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} within {seconds} seconds"
        time.sleep(0.3)


@contextmanager
def simulated_slurm(folder: Path, *, nodes: int) -> Iterator[SimulatedSlurm]:
    """Starts a cluster and takes it away again.

    Args:
        folder: of at most 60 characters, for the sockets in it.
        nodes: nodes, besides the login node.
    """
    words = ["--nodes", str(nodes), "--dir", str(folder), "--kill-wait", "20", "--no-install"]
    subprocess.run([str(HERE / "start_slurm.sh"), *words], check=True, stdout=subprocess.DEVNULL)
    try:
        yield SimulatedSlurm(folder)
    finally:
        subprocess.run(
            [str(HERE / "stop_slurm.sh"), "--dir", str(folder), "--purge"], check=True, stdout=subprocess.DEVNULL
        )
