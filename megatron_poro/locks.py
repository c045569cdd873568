"""One process at a time: a lock on a file, which the system lets go of when its holder ends, however it ends."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_poro.logs import get_logger

logger = get_logger(__name__)


@contextmanager
def hold(path: Path, in_use: Exception) -> Iterator[None]:
    """Holds a lock file for the length of a ``with`` block, and removes it at the end.

    Args:
        path: the lock file; its folder exists.
        in_use: what is raised if another process holds it.

    Raises:
        OSError: if the file cannot be made.
    """
    while True:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise in_use from None
                logger.warning(
                    "%s cannot be locked (%s); take care that only one process works here.", path, error.strerror
                )
            if not _is_file_at(path, file.fileno()):
                continue  # the holder before us removed it between our opening and our locking
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_file_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
