"""What a launcher tells a process. Imports nothing, so that a command line is checked before torch is loaded."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One process among those of a run.

    Attributes:
        rank: its number among all.
        local_rank: its number on this machine.
        size: how many there are.
        job: number of the scheduler's job they belong to, if any.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    job: str | None = None
