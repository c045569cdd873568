"""Where the threads of a process stand, written down so that people and other processes can read it; and which process
of several is the odd one.

A run hangs because one process does not come to where the others wait for it. So the odd one is the process that wrote
nothing (stopped, or its machine is), or else one that is not waiting in a communication call while others are, or else
the one that is at another place of the program than most.
"""

import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple

from megatron_poro.train.peers import Peer

_COMMUNICATION = ("torch/distributed/", "deepspeed/comm/")
_WAITING_FRAMES = 3
_SHOWN_FRAMES = 3
_OURS = ("megatron_poro/", "deepspeed/runtime/pipe/")
_MAIN = "MainThread"


class Frame(NamedTuple):
    """One call on a stack: file (shortened), line, function."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


@dataclass(frozen=True)
class Stacks:
    """All threads of one process at one moment.

    Attributes:
        rank: of the process.
        phase: what its main thread was doing, as it said itself.
        marks: how often it had said so since its start.
        quiet_seconds: how long ago the last time was.
        threads: frames of each thread by its name, innermost call first.
    """

    rank: int
    phase: str
    marks: int
    quiet_seconds: float
    threads: Mapping[str, tuple[Frame, ...]]

    @property
    def main(self) -> tuple[Frame, ...]:
        """The main thread's frames, innermost call first."""
        return self.threads.get(_MAIN, ())

    @property
    def is_waiting(self) -> bool:
        """Whether the main thread is in a communication call."""
        return any(part in frame.file for frame in self.main[:_WAITING_FRAMES] for part in _COMMUNICATION)

    def where(self) -> str:
        """The innermost call and the calls of ours that led to it, in one line."""
        ours = [frame for frame in self.main[1:] if frame.file.startswith(_OURS)]
        return " < ".join(map(str, [*self.main[:1], *ours[:_SHOWN_FRAMES]])) or "no Python code"

    def encode(self) -> str:
        """The text of a stack file."""
        lines = [f"rank {self.rank} marks {self.marks} quiet {self.quiet_seconds:.1f} phase {self.phase}"]
        for name, frames in self.threads.items():
            lines += [f"thread {name}", *(f"  {frame.file}:{frame.line} {frame.function}" for frame in frames)]
        return "\n".join(lines) + "\n"

    @classmethod
    def decode(cls, text: str) -> "Stacks":
        """Reads what :meth:`encode` wrote."""
        first, *lines = text.splitlines()
        _, rank, _, marks, _, quiet, _, phase = first.split(" ", 7)
        threads: dict[str, list[Frame]] = {}
        for line in lines:
            if line.startswith("thread "):
                frames = threads.setdefault(line.removeprefix("thread "), [])
            else:
                place, _, function = line.strip().partition(" ")
                file, _, number = place.rpartition(":")
                frames.append(Frame(file, int(number), function))
        return cls(int(rank), phase, int(marks), float(quiet), {name: tuple(one) for name, one in threads.items()})


def capture(*, rank: int, phase: str, marks: int, quiet_seconds: float) -> Stacks:
    """The stacks of this process. Reads no file and takes no lock: the disk may be what hangs."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    threads: dict[str, tuple[Frame, ...]] = {}
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            threads[names.get(ident, f"{ident}").replace("\n", " ")] = tuple(_frames(frame))
    return Stacks(rank, phase, marks, quiet_seconds, threads)


def delaying_ones(stacks: Sequence[Stacks], ranks: Iterable[int]) -> list[int]:
    """The ranks that do not come to where the others wait: their machine may be at fault, the program is not.

    Args:
        stacks: of the processes that could write them.
        ranks: all processes.
    """
    missing = sorted(set(ranks) - {one.rank for one in stacks})
    if missing:
        return missing
    busy = [one.rank for one in stacks if not one.is_waiting]
    return busy if len(busy) < len(stacks) else []


def odd_ones(stacks: Sequence[Stacks], ranks: Iterable[int]) -> list[int]:
    """The ranks that keep the others waiting, as far as stacks can tell; empty if they cannot.

    Args:
        stacks: of the processes that could write them.
        ranks: all processes.
    """
    if delaying := delaying_ones(stacks, ranks):
        return delaying
    for place in (_marks, _calls):
        counted = Counter(map(place, stacks))
        rarest = min(counted.values())
        if len(counted) > 1 and sum(count == rarest for count in counted.values()) == 1:
            return [one.rank for one in stacks if counted[place(one)] == rarest]
    return _furthest(stacks)


def report(stacks: Sequence[Stacks], peers: Sequence[Peer]) -> list[str]:
    """What a person must know, a line each: the odd processes one by one, then the others in groups."""
    peer_of = {peer.rank: peer for peer in peers}
    stack_of = {one.rank: one for one in stacks}
    odd = odd_ones(stacks, peer_of)
    lines = []
    for rank in odd:
        if rank in stack_of:
            one = stack_of[rank]
            lines.append(f"{peer_of[rank]} is the odd one: {_doing(one)}, {one.quiet_seconds:.0f} s, at {one.where()}")
        else:
            lines.append(
                f"{peer_of[rank]} is the odd one: it wrote no stacks, so it is stopped or dead, or its machine is"
            )
    groups: dict[tuple[str, str], list[int]] = {}
    for one in stacks:
        if one.rank not in odd:
            groups.setdefault((_doing(one), one.where()), []).append(one.rank)
    for (doing, where), ranks in groups.items():
        lines.append(f"{_named(ranks)}: {doing}, at {where}")
    return lines


def _frames(frame: FrameType | None) -> Iterable[Frame]:
    while frame is not None:
        code = frame.f_code
        yield Frame(_short(code.co_filename), frame.f_lineno, code.co_name)
        frame = frame.f_back


def _short(file: str) -> str:
    """A path without what all have in common: from the package on, or its last parts."""
    for root in ("/site-packages/", "/megatron_poro/", "/tests/"):
        _, found, rest = file.rpartition(root)
        if found:
            return (rest if root == "/site-packages/" else f"{root.strip('/')}/{rest}").replace(" ", "_")
    return "/".join(file.split("/")[-2:]).replace(" ", "_")


def _doing(one: Stacks) -> str:
    return f"{'waits for others' if one.is_waiting else 'busy'} in phase '{one.phase}'"


def _named(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _marks(one: Stacks) -> int:
    return one.marks


def _calls(one: Stacks) -> tuple[Frame, ...]:
    return one.main


def _furthest(stacks: Sequence[Stacks]) -> list[int]:
    """Who has got on further than the rest did not wait for them: it has left out a communication call."""
    most = max(one.marks for one in stacks)
    further = [one.rank for one in stacks if one.marks == most]
    return further if len(further) < len(stacks) else []
