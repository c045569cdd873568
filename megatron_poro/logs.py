"""Logging of the whole package: one format, on stderr, from rank 0 unless something is wrong elsewhere.

Rooms ask for ``logs.get_logger(__name__)`` and never configure anything; a command calls ``configure`` once, before
it does anything else. Results that a user pipes on go to stdout by ``print`` in ``cli``; everything else comes here.
"""

import logging
import os
import sys
from typing import TextIO

_ROOT = "megatron_poro"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; pass ``__name__``."""
    if name != _ROOT and not name.startswith(f"{_ROOT}."):
        name = f"{_ROOT}.{name}"  # a door run as __main__ belongs to the package all the same
    return logging.getLogger(name)


def rank_from_environment() -> int:
    """Global rank as torchrun or ``srun`` tell it; 0 for a process started by hand."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def configure(
    *, rank: int | None = None, level: int = logging.INFO, all_ranks: bool = False, stream: TextIO | None = None
) -> None:
    """Sets up the package's logging; a second call replaces the first.

    Args:
        rank: global rank of this process; ``None`` reads it from the environment.
        level: least severe level that is written.
        all_ranks: write from every rank at ``level``. By default ranks other than 0 write errors only: a thousand
            processes that all report progress hide the one that has something to say.
        stream: where to write; ``None`` is stderr.
    """
    if rank is None:
        rank = rank_from_environment()
    handler: logging.Handler = _StandardError() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)-7s rank {rank} %(name)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    )
    root = logging.getLogger(_ROOT)
    root.handlers = [handler]
    root.propagate = False  # a library that configures the root logger must not print our lines twice
    root.setLevel(level if rank == 0 or all_ranks else max(level, logging.ERROR))


class _StandardError(logging.Handler):
    """Writes to what ``sys.stderr`` is at the moment of writing.

    A progress bar replaces it while it is shown, so that lines go above the bar and not into it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)
