"""Brings the microbatches of a step to one data rank, reading the next step's while this one is computed."""

import threading
from types import TracebackType

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
        self._prefetch = prefetch
        self._ahead: _Reading | None = None

    def load(self, consumed_samples: int) -> list[Batch]:
        """The microbatches of the step that follows ``consumed_samples`` samples.

        Raises:
            DataError: if the mixture has fewer samples than the step needs, or a sample cannot be read; also when
                the reading happened in the background.
        """
        needed = consumed_samples + self._sampler.global_batch_samples
        if consumed_samples < 0 or needed > len(self.mixture):
            raise DataError(
                f"a step after {consumed_samples} samples needs samples up to {needed}, but the mixture was built for "
                f"{len(self.mixture)}: build it for the whole run."
            )
        reading, self._ahead = self._ahead, None
        if reading is not None and reading.consumed_samples != consumed_samples:
            reading.join()
            reading = None
        batches = self._read(consumed_samples) if reading is None else reading.result()
        if self._prefetch and needed + self._sampler.global_batch_samples <= len(self.mixture):
            self._ahead = _Reading(self, needed)
            self._ahead.start()
        return batches

    def close(self) -> None:
        """Waits for the background reading, if any, and drops it; the loader can be used again."""
        if self._ahead is not None:
            self._ahead.join()
            self._ahead = None

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, consumed_samples: int) -> list[Batch]:
        microbatches = self._sampler.microbatches(consumed_samples, self._data_rank)
        return [collate([self.mixture.sample(number) for number in numbers]) for numbers in microbatches]


class _Reading(threading.Thread):
    """One step being read in the background; ``result`` gives its batches or raises its error."""

    def __init__(self, loader: BatchLoader, consumed_samples: int) -> None:
        super().__init__(name=f"read-after-{consumed_samples}", daemon=True)
        self.consumed_samples = consumed_samples
        self._loader = loader
        self._batches: list[Batch] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._batches = self._loader._read(self.consumed_samples)
        except BaseException as error:  # whatever it is, the caller of load must get it
            self._error = error

    def result(self) -> list[Batch]:
        self.join()
        if self._error is not None:
            raise self._error
        return self._batches
