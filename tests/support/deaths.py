"""Processes that die for good at a chosen file operation, as if the machine lost power between two system calls."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEAD = 9
"""Status of a process that :func:`die_at` has ended."""

_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def in_child(body: Callable[[], object]) -> int:
    """Runs a function in a forked process; returns its exit status (0 when it came to its end)."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            body()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(event: int, folder: Path) -> None:
    """Ends this process for good just before its ``event``-th operation on a folder. For forked processes only."""
    seen = 0

    def count(path: object) -> None:
        nonlocal seen
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(str(folder)):
            seen += 1
            if seen > event:
                os._exit(DEAD)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name in _OPERATIONS and arguments:
            count(arguments[0])

    sync = os.fsync

    def counting_sync(descriptor: int) -> None:
        count(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    sys.addaudithook(hook)
    os.fsync = counting_sync  # type: ignore[assignment]
