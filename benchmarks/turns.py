"""Variants of a step that take turns, each in a process of its own.

How one process uses its memory changes what an allocator does for the next variant in it, so none shares a process;
what else the machine does comes and goes, so they take turns, some steps each, and rounds are compared.
"""

import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

Step = Callable[[], float]
"""Takes a step and returns its loss."""


class Peer(NamedTuple):
    """A library that a variant needs.

    Attributes:
        module: what is imported of it.
        requirement: what pip installs it by.
    """

    module: str
    requirement: str


class Turn(NamedTuple):
    """What some steps in a row took and came to.

    Attributes:
        seconds: of a step, by the clock.
        processor_seconds: of a step, over all threads of the process; threads that wait for others may count.
        loss: of the last step.
    """

    seconds: float
    processor_seconds: float
    loss: float


class Worker:
    """A variant in a process of its own, which takes steps when told to. Construction waits until it is warm.

    Args:
        name: of the variant, for the message if it fails.
        build: makes its step; a function of a module, or a ``partial`` of one.
    """

    def __init__(self, name: str, build: Callable[[], Step]) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(build, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def run(self, steps: int) -> Turn:
        """Takes so many steps."""
        self._pipe.send(steps)
        return Turn(*self._receive())

    def end(self) -> int:
        """Ends the process and waits until it is gone; returns its peak resident memory in bytes."""
        self._pipe.send(0)
        (peak,) = self._receive()
        self._process.join()
        return int(peak)

    def _receive(self) -> tuple[float, ...]:
        try:
            received: tuple[float, ...] = self._pipe.recv()
        except EOFError:
            raise SystemExit(f"the variant {self._name!r} failed; its process has said above why.") from None
        return received


def race(
    builds: Mapping[str, Callable[[], Step]], *, rounds: int, steps: int, before_round: Callable[[], None] | None = None
) -> tuple[dict[str, list[Turn]], dict[str, int]]:
    """Lets variants take turns.

    Args:
        builds: what makes each variant's step, by its name.
        rounds: turns of each.
        steps: of a turn.
        before_round: called while none of them computes.

    Returns:
        Each variant's turns, in their order, and its peak memory in bytes.
    """
    workers = {name: Worker(name, build) for name, build in builds.items()}
    turns: dict[str, list[Turn]] = {name: [] for name in builds}
    names = list(workers)
    for number in range(rounds):
        if before_round is not None:
            before_round()
        first = number % len(names)  # another one each round: who comes first was seen to be slower
        for name in names[first:] + names[:first]:
            turns[name].append(workers[name].run(steps))
    return turns, {name: worker.end() for name, worker in workers.items()}


def require(peers: Mapping[str, Peer]) -> None:
    """Leaves with one sentence where a variant's library is missing.

    Args:
        peers: what each variant needs, by its name.
    """
    missing = {name: peer.requirement for name, peer in peers.items() if not _is_there(peer.module)}
    if missing:
        packages = " ".join(f"'{requirement}'" for requirement in sorted(set(missing.values())))
        names = ", ".join(map(repr, missing))
        raise SystemExit(f"--variants {names}: not installed. Run: pip install {packages}, or leave it out.")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that holds it
        return False


def _serve(build: Callable[[], Step], pipe: Connection) -> None:
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    step = build()
    for _ in range(2):
        step()
    pipe.send(())
    loss = 0.0
    while steps := pipe.recv():
        began, computed = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = step()
        pipe.send(((time.perf_counter() - began) / steps, (time.process_time() - computed) / steps, loss))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    pipe.send((1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]),))
