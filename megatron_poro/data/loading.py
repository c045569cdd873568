"""Brings the microbatches of a step to one data rank, reading the next step's while this one is computed."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import NamedTuple

from megatron_poro.data.batch import Batch, collate
from megatron_poro.data.mixture import Mixture
from megatron_poro.data.sampler import Sampler
from megatron_poro.errors import DataError


class BatchLoader:
    """Batches by samples consumed. Holds no position: any step may be asked for at any time.

    Notable: reading ahead is only a guess that the following step is next. A wrong guess costs time and nothing else.

    Attributes:
        mixture: where samples come from.
    """

    def __init__(self, mixture: Mixture, sampler: Sampler, *, data_rank: int, prefetch: bool = True) -> None:
        """Makes a loader for one data rank; every rank of its replica loads the same batches.

        Args:
            mixture: where samples come from.
            sampler: how they are dealt.
            data_rank: this process's replica.
            prefetch: read the following step in a background thread.
        """
        self.mixture = mixture
        self._sampler = sampler
        self._data_rank = data_rank
        self._reader = _Reader(self._read) if prefetch else None
        self._ahead: _Ahead | None = None

    def load(self, consumed_samples: int) -> list[Batch]:
        """The microbatches of the step that follows ``consumed_samples`` samples.

        Raises:
            DataError: if the mixture has fewer samples than the step needs, or a sample cannot be read; also when
                the reading happened in the background.
        """
        needed = self._behind(consumed_samples)
        if consumed_samples < 0 or needed > len(self.mixture):
            raise DataError(
                f"a step after {consumed_samples} samples needs samples up to {needed}, but the mixture was built for "
                f"{len(self.mixture)}: build it for the whole run."
            )
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.consumed_samples == consumed_samples:
            batches = ahead.batches.result()
        else:
            if ahead is not None:
                ahead.batches.exception()  # waits: one thread at a time reads
            batches = self._read(consumed_samples)
        self.read_ahead(needed)
        return batches

    def read_ahead(self, consumed_samples: int) -> None:
        """Has the step that follows ``consumed_samples`` samples read while something else is done, if there is one.

        Does nothing in a loader that does not prefetch.
        """
        if self._reader is not None and self._behind(consumed_samples) <= len(self.mixture):
            self._ahead = _Ahead(consumed_samples, self._reader.start(consumed_samples))

    def close(self) -> None:
        """Waits for the background reading, if any, and drops it; the loader can be used again."""
        self._ahead = None
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _behind(self, consumed_samples: int) -> int:
        return consumed_samples + self._sampler.global_batch_samples

    def _read(self, consumed_samples: int) -> list[Batch]:
        microbatches = self._sampler.microbatches(consumed_samples, self._data_rank)
        return [collate([self.mixture.sample(number) for number in numbers]) for numbers in microbatches]


class _Ahead(NamedTuple):
    """A step that is read before it is asked for.

    Attributes:
        consumed_samples: before it.
        batches: of it, or the error of reading them.
    """

    consumed_samples: int
    batches: "Future[list[Batch]]"


class _Reader:
    """A thread that reads one step after another, from the first one on that it is asked for.

    It goes on from step to step: who asks waits for no thread to start, which takes milliseconds on a busy machine. It
    ends with the process, whatever it is reading.
    """

    def __init__(self, read: Callable[[int], list[Batch]]) -> None:
        self._read = read
        self._asked: SimpleQueue[tuple[int, Future[list[Batch]]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, consumed_samples: int) -> "Future[list[Batch]]":
        """Has a step read; the result is its batches, or what went wrong."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
            self._thread.start()
        reading: Future[list[Batch]] = Future()
        self._asked.put((consumed_samples, reading))
        return reading

    def close(self) -> None:
        """Ends the thread when it has read what it was asked for; the next step starts another one."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            consumed_samples, reading = asked
            try:
                reading.set_result(self._read(consumed_samples))
            except BaseException as error:  # whatever it is, the caller of load must get it
                reading.set_exception(error)
            del asked, reading  # the batches belong to who asked
