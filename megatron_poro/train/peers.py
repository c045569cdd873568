"""Who the processes of a run are: rank, machine, process id; and whether one on this machine is gone."""

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """One process of a run.

    Attributes:
        rank: its number among all.
        host: name of its machine.
        pid: its process id there.
        started: when it started, in the kernel's own count; tells it from a later process with the same id. Empty where
            the system does not say.
    """

    rank: int
    host: str
    pid: int
    started: str

    @classmethod
    def this_process(cls, rank: int) -> "Peer":
        """The process that calls."""
        return cls(rank, socket.gethostname(), os.getpid(), _state_and_start(os.getpid())[1])

    def is_gone(self) -> bool:
        """Whether the process has ended; asked on its own machine only."""
        state, started = _state_and_start(self.pid)
        return state in ("gone", "Z", "X") or started != self.started

    def kill(self) -> None:
        """Ends the process, also one that is stopped; called on its own machine only."""
        if not self.is_gone():
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.pid})"


def _state_and_start(pid: int) -> tuple[str, str]:
    """State letter and start time of a process as Linux tells them."""
    try:
        # the name of the command stands in parentheses and may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except FileNotFoundError:
        return ("gone", "") if Path("/proc/self/stat").exists() else (_state_without_proc(pid), "")
    except (ProcessLookupError, IndexError):
        return "gone", ""


def _state_without_proc(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        return ""
    return ""
