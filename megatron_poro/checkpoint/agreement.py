"""All processes of a run succeed or fail together, so that none waits for one that has given up.

Saving and loading talk to disks, and a disk can fail on one node alone. Every phase therefore ends with an exchange of
what went wrong where; one failure anywhere becomes the same :class:`CheckpointError` everywhere.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_poro.errors import CheckpointError, PoroError
from megatron_poro.parallel.groups import ParallelGroups

T = TypeVar("T")

# what a disk, a damaged file or a user can cause; torch reports a write that failed as RuntimeError
_INPUTS_FAULT = (PoroError, OSError, RuntimeError, CheckpointException)


@dataclass(frozen=True)
class World:
    """All processes of a run and this one's place among them; a world of one needs no distributed runtime."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, groups: ParallelGroups) -> "World":
        """The world that a process grid spans (its processes are those of torch's default group)."""
        at = groups.coordinate
        return cls(groups.topology.rank(at.pipeline, at.data, at.tensor), groups.topology.world_size)

    @property
    def is_first(self) -> bool:
        """Whether this process does what one process must do for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process's value, in rank order, on every process. All processes call it."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    @contextmanager
    def together(self, explain: Callable[[BaseException], str] = str) -> Iterator[None]:
        """Runs a block on all processes; if it fails on one, it raises on all.

        Every process enters it, also those whose block does nothing. The block itself must not communicate after
        anything that can fail on one process alone: the others would wait for it.

        Args:
            explain: makes one sentence of an exception; not asked about the project's own errors.

        Raises:
            CheckpointError: on every process, with the sentence of the lowest rank that failed. A process whose failure
                is a bug raises that instead, with its traceback.
        """
        failure: BaseException | None = None
        try:
            yield
        except (Exception, CheckpointException) as error:  # the latter is torch's, and not an Exception
            failure = error
        sentence = None
        if failure is not None:
            sentence = str(failure) if isinstance(failure, PoroError) else explain(failure)
        sentences = [text for text in self.gather(sentence) if text is not None]
        if failure is not None and not isinstance(failure, _INPUTS_FAULT):
            raise failure
        if sentences:
            raise CheckpointError(sentences[0]) from failure
