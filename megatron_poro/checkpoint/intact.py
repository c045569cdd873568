"""Comparing a checkpoint with its manifest while somebody reads it already."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from megatron_poro.checkpoint import manifest
from megatron_poro.errors import CheckpointError

# files that are hashed between two looks at whether anybody still waits for the result
_FILES_AT_ONCE = 8


@contextmanager
def intact_at_the_end(checkpoint: Path, files: Collection[str] | None = None) -> Iterator[None]:
    """Compares a checkpoint with its manifest, byte by byte, beside the block that reads it.

    Args:
        checkpoint: a step folder.
        files: those that the block reads; None for all.

    Raises:
        CheckpointError: at the end of the block if the checkpoint is damaged; also in place of an error that the block
            met, which is then no more than what the damage did.
    """
    abandoned = Event()
    with ThreadPoolExecutor(1, "verify") as pool:
        verdict = pool.submit(_problems, checkpoint, files, abandoned)
        try:
            yield
        except Exception:
            _refuse(checkpoint, verdict.result())
            raise
        except BaseException:  # somebody wants to leave now
            abandoned.set()
            raise
        _refuse(checkpoint, verdict.result())


def _problems(checkpoint: Path, files: Collection[str] | None, abandoned: Event) -> list[str]:
    names = sorted(manifest.read(checkpoint) if files is None else files)
    found: list[str] = []
    for first in range(0, len(names), _FILES_AT_ONCE):
        if not abandoned.is_set():
            found += manifest.problems(checkpoint, only=names[first : first + _FILES_AT_ONCE])
    return found


def _refuse(checkpoint: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(f"{checkpoint} is damaged: {'; '.join(problems)}. Use another checkpoint.")
