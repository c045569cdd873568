"""The seam between samples and everything that uses them; a source knows nothing of processes, batches or mixtures."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.indexed import outside_vocabulary
from megatron_poro.data.samples import Piece, SampleIndex


class Sample(NamedTuple):
    """One sequence.

    Attributes:
        tokens: int64 ``[s + 1]``: what the model reads and, one further on, what it must predict.
        loss_mask: fp32 ``[s]``, weight of each label in the loss; None counts every label.
    """

    tokens: NDArray[np.int64]
    loss_mask: NDArray[np.float32] | None = None


class Source(Protocol):
    """A finite list of samples; ``sample`` is a pure function of its argument, so any process may ask for any."""

    @property
    def name(self) -> str:
        """Short name for metrics and messages."""
        ...

    @property
    def samples_per_epoch(self) -> float:
        """Samples after which all of its text has been read once; not a whole number, as samples cross epochs."""
        ...

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def sample(self, index: int) -> Sample:
        """Sample ``index``, from 0."""
        ...

    def pieces(self, index: int) -> list[Piece]:
        """The documents that sample ``index`` is made of; empty for a source that has none."""
        ...


class IndexedSource:
    """Samples of an indexed dataset or a part of it; checks every token that is read against the vocabulary."""

    def __init__(self, name: str, index: SampleIndex, *, vocab_size: int) -> None:
        self.name = name
        self._index = index
        self._vocab_size = vocab_size

    @property
    def samples_per_epoch(self) -> float:
        """Tokens of the source by the length of a sample."""
        return self._index.num_tokens / self._index.sequence_length

    def __len__(self) -> int:
        return len(self._index)

    def sample(self, index: int) -> Sample:
        """Sample ``index`` in training order.

        Raises:
            DataError: if it holds an id outside the vocabulary.
        """
        tokens = self._index.sample(index)
        if int(tokens.view(np.uint64).max()) >= self._vocab_size:  # as unsigned numbers, negative ids are huge
            bad = tokens[(tokens < 0) | (tokens >= self._vocab_size)]
            raise outside_vocabulary(self._index.dataset, int(bad[0]), self._vocab_size)
        return Sample(tokens)

    def pieces(self, index: int) -> list[Piece]:
        """The parts of documents that sample ``index`` is made of."""
        return self._index.pieces(index)
