"""Runs a function on several forked processes joined by gloo: torch is imported once, a world of 4 starts in a blink.

The parent must not have started a thread pool before it forks; ``tests/conftest.py`` keeps torch at one thread.
"""

import gc
import os
import pickle
import random
import socket
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class RankFailure(AssertionError):
    """One or more ranks raised; carries their tracebacks."""


def run_ranks(function: Callable[..., Any], *arguments: Any, world: int, timeout_seconds: float = 120.0) -> list[Any]:
    """Calls ``function(*arguments)`` in ``world`` processes of one gloo group; returns their results in rank order.

    Results travel by pickle. An exception on any rank is raised here with the tracebacks of all that failed. Ranks that
    gloo could not connect with each other, which is rare, have done nothing: they try again.
    """
    assert torch.get_num_threads() == 1, "fork needs a parent with one torch thread"
    for _ in range(_MEETINGS):
        outcomes = _outcomes(function, arguments, world, timeout_seconds)
        failures = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(outcomes) if not ok]
        if not any(_NOT_MET in text for text in failures):
            break
    if failures:
        raise RankFailure("\n".join(failures))
    return [value for _, value in outcomes]


_MEETINGS = 3
_NOT_MET = "Gloo connectFullMesh failed"


def _outcomes(
    function: Callable[..., Any], arguments: tuple[Any, ...], world: int, timeout_seconds: float
) -> list[tuple[bool, Any]]:
    """Of each rank whether it returned, and what, or its traceback."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        gc.freeze()  # a collection in a child would copy every page of what it inherited
        children = {}
        for rank in range(world):
            child = os.fork()
            if child == 0:
                _run_child(function, arguments, rank, world, port, Path(folder), timeout_seconds)
            children[child] = rank
        _wait_for(children)
        return [_outcome(Path(folder) / str(rank)) for rank in range(world)]


def _run_child(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    rank: int,
    world: int,
    port: int,
    folder: Path,
    timeout_seconds: float,
) -> None:
    """Body of one forked rank; never returns."""
    status = 0
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=timeout_seconds))
        outcome: tuple[bool, Any] = (True, function(*arguments))
        dist.destroy_process_group()
    except BaseException:
        outcome, status = (False, traceback.format_exc()), 1
    try:
        (folder / str(rank)).write_bytes(pickle.dumps(outcome))
    finally:
        os._exit(status)


def _wait_for(children: dict[int, int]) -> None:
    """Reaps all children; when one fails, the others get SIGKILL after it has been reaped, since they would hang."""
    remaining = set(children)
    while remaining:
        child, status = os.wait()
        if child not in remaining:
            continue
        remaining.discard(child)
        if status != 0:
            for other in remaining:
                os.kill(other, 9)


def _outcome(path: Path) -> tuple[bool, Any]:
    if not path.exists():
        return False, "ended without a result (killed because another rank failed, or died)"
    result: tuple[bool, Any] = pickle.loads(path.read_bytes())
    return result


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, nor is given by the kernel before someone does."""
    while True:
        port = random.SystemRandom().randrange(*_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


_PORTS = (16384, 32768)
"""Below those that connections of other processes get, on Linux and elsewhere."""
