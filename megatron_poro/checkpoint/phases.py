"""The phases of a save or a load: each ends on all processes together, and what a disk did becomes one sentence."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch.distributed.checkpoint.api import CheckpointException

from megatron_poro.errors import CheckpointError, PoroError
from megatron_poro.parallel.agreement import World

# what a disk, a damaged file or a user can cause. Torch reports a write that failed as RuntimeError, and what failed on
# any process as CheckpointException, which is not an Exception.
_FAULTS = (PoroError, OSError, RuntimeError, CheckpointException)


def phase(world: World, explain: Callable[[BaseException], str] = str) -> AbstractContextManager[None]:
    """A block that all processes run; if it fails on one, it raises on all. As :meth:`World.together`.

    Args:
        world: the processes that take part.
        explain: makes one sentence of an exception; not asked about the project's own errors.

    Raises:
        CheckpointError: on every process, with the sentence of the lowest rank that failed; of the class it has there
            if that is a CheckpointError's. A process whose failure is a bug raises that instead, with its traceback.
    """

    def told(error: BaseException) -> CheckpointError:
        if isinstance(error, CheckpointError):
            return error
        return CheckpointError(str(error) if isinstance(error, PoroError) else explain(_cause(error)))

    return world.together(faults=_FAULTS, explain=told)


def _cause(error: BaseException) -> BaseException:
    """The exception of the first process that torch names, where it hands over those of several."""
    if isinstance(error, CheckpointException):
        return next(iter(error.failures.values()))[0]
    return error
