"""Cuts the documents of one dataset into samples of fixed length, in exactly the order of Megatron's GPT dataset.

Three arrays describe that order:

* documents: the documents of all epochs, shuffled together. Only a short last epoch is shuffled on its own.
* boundaries: where each sample begins when the documents are read in that order as one stream. A sample is
  ``sequence_length + 1`` tokens, crosses document ends freely, and shares its last token with the next sample.
* shuffle: the order in which samples are used, again with a short last epoch on its own.

Notable: the boundaries come from a running sum over blocks of documents in which the sample begins are looked up, so no
compiled extension is needed and memory does not grow with the number of documents beyond the arrays themselves.

Source: Megatron-DeepSpeed, megatron/data/gpt_dataset.py and helpers.cpp, in the variant that trained Poro 34B.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.index_cache import IndexCache
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.errors import DataError

SEPARATE_LAST_EPOCH_BELOW = 0.95
"""A last epoch of which less than this share is used is shuffled on its own; newer Megatron versions say 0.80."""

ORDER_VERSION = 1
"""Part of the cache key; raise it when the order for the same inputs changes."""

_BLOCK_DOCUMENTS = 1 << 16
"""Few enough that a block's running sum stays in the processor's cache: twice as fast as blocks of millions."""


class EpochPlan(NamedTuple):
    """How often a dataset is read to fill a number of samples.

    Attributes:
        epochs: times the dataset is read.
        samples: samples that so many epochs hold, at least the number asked for.
        samples_before_last: samples of the epochs that are shuffled together when the last one is separate; else
            equal to ``samples``.
        separate_last: whether the last epoch is shuffled on its own.
    """

    epochs: int
    samples: int
    samples_before_last: int
    separate_last: bool


class Order(NamedTuple):
    """The three arrays.

    Attributes:
        documents: int32 ``[epochs * documents]``, document numbers.
        boundaries: int32 (int64 past 2**31 entries) ``[samples + 1, 2]``: position in ``documents``, token in it.
        shuffle: uint32 (int64 past 2**32 - 2 samples) ``[samples]``: which sample is used when.
    """

    documents: NDArray[Any]
    boundaries: NDArray[Any]
    shuffle: NDArray[Any]


class Piece(NamedTuple):
    """A part of one document: tokens ``begin`` to ``end``, the latter not included."""

    document: int
    begin: int
    end: int


class SampleIndex:
    """The samples of one dataset or a part of it; ``sample(k)`` is the k-th in training order.

    Attributes:
        dataset: where the tokens are.
        documents: of the dataset, that are read; ``order`` counts from the first of them.
        num_tokens: in those documents.
        sequence_length: tokens the model sees per sample.

    Raises:
        DataError: if there are no tokens, or the index of the dataset is damaged.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        *,
        num_samples: int,
        sequence_length: int,
        seed: int,
        cache: IndexCache,
        documents: range | None = None,
    ) -> None:
        """Maps the order of at least ``num_samples`` samples from the cache, or builds it."""
        self.dataset = dataset
        self.documents = range(dataset.num_documents) if documents is None else documents
        self._sizes = dataset.sizes[self.documents.start : self.documents.stop]
        is_whole = len(self.documents) == dataset.num_documents
        self.num_tokens = dataset.num_tokens if is_whole else int(self._sizes.sum(dtype=np.int64))
        self.sequence_length = sequence_length
        require_tokens(dataset.prefix, self.num_tokens, is_whole=is_whole)

        def build() -> dict[str, NDArray[Any]]:
            dataset.check_layout()
            return build_order(
                self._sizes, num_samples=num_samples, sequence_length=sequence_length, seed=seed
            )._asdict()

        facts = {
            "kind": "samples",
            "version": ORDER_VERSION,
            "dataset": str(dataset.prefix.resolve()),
            "digest": dataset.digest,
            "documents": dataset.num_documents,
            "tokens": dataset.num_tokens,
            "num_samples": num_samples,
            "sequence_length": sequence_length,
            "seed": seed,
        }
        if not is_whole:
            facts["part"] = [self.documents.start, self.documents.stop]
        self.order = Order(**cache.arrays(dataset.prefix.name, facts, build))

    def __len__(self) -> int:
        return len(self.order.shuffle)

    def sample(self, index: int) -> NDArray[np.int64]:
        """Tokens of one sample, int64 ``[sequence_length + 1]``."""
        tokens = np.empty(self.sequence_length + 1, dtype=np.int64)
        filled = 0
        for number, begin, end in self.pieces(index):
            tokens[filled : filled + end - begin] = self.dataset.document(number)[begin:end]
            filled += end - begin
        assert filled == len(tokens), f"sample {index} of {self.dataset.prefix} has {filled} tokens"
        return tokens

    def pieces(self, index: int) -> list[Piece]:
        """The parts of documents that make up one sample, in order; the last token of the last is a label only."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {self.dataset.prefix}, which has {len(self)}")
        row = int(self.order.shuffle[index])
        (first, begin), (last, end) = self.order.boundaries[row : row + 2].tolist()
        documents = (self.order.documents[first : last + 1].astype(np.int64) + self.documents.start).tolist()
        ends = [*self.dataset.sizes[documents[:-1]].tolist(), end + 1]
        begins = [begin, *[0] * (len(documents) - 1)]
        return list(map(Piece, documents, begins, ends))


def document_range(num_documents: int, *, start: float, end: float) -> range:
    """The documents between two fractions of a dataset; parts that meet in a fraction share no document.

    Source: Megatron-LM, blended_megatron_dataset_builder.py, which rounds the borders of its splits in this way.
    """
    return range(round(start * float(num_documents)), round(end * float(num_documents)))


def require_tokens(prefix: Path, num_tokens: int, *, is_whole: bool) -> None:
    """Refuses a source that has nothing to read.

    Raises:
        DataError: naming the dataset.
    """
    if num_tokens == 0:
        what = f"dataset {prefix} holds" if is_whole else f"the part of dataset {prefix} between start and end holds"
        raise DataError(f"{what} no tokens; remove it from the mixture or make it again.")


def build_order(sizes: NDArray[np.int32], *, num_samples: int, sequence_length: int, seed: int) -> Order:
    """Works out the order of a dataset from the sizes of its documents.

    Args:
        sizes: tokens of each document.
        num_samples: samples wanted; the order holds all samples of as many whole epochs as that takes.
        sequence_length: tokens the model sees per sample.
        seed: of both shuffles.
    """
    plan = plan_epochs(int(sizes.sum(dtype=np.int64)), num_samples=num_samples, sequence_length=sequence_length)
    # one stream of random numbers, used by the documents first and then by the samples
    random = np.random.RandomState(seed)
    documents = _shuffled_documents(len(sizes), plan, random)
    boundaries = find_boundaries(sizes, documents, num_samples=plan.samples, sequence_length=sequence_length)
    return Order(documents, boundaries, _shuffled_samples(plan, random))


def plan_epochs(num_tokens: int, *, num_samples: int, sequence_length: int) -> EpochPlan:
    """How many epochs of ``num_tokens`` are read for ``num_samples``, and whether the last is shuffled on its own."""
    epochs = max(1, -(-(num_samples * sequence_length + 1) // num_tokens))
    samples = (epochs * num_tokens - 1) // sequence_length
    if epochs > 1:
        before_last = ((epochs - 1) * num_tokens - 1) // sequence_length
        per_epoch = (num_tokens - 1) // sequence_length
        if num_samples - before_last < int(SEPARATE_LAST_EPOCH_BELOW * per_epoch):
            return EpochPlan(epochs, samples, before_last, separate_last=True)
    return EpochPlan(epochs, samples, samples, separate_last=False)


def find_boundaries(
    sizes: NDArray[np.int32],
    documents: NDArray[Any],
    *,
    num_samples: int,
    sequence_length: int,
    block_documents: int = _BLOCK_DOCUMENTS,
) -> NDArray[Any]:
    """Where each sample begins, and where the last one ends.

    Args:
        sizes: tokens of each document.
        documents: order in which documents are read.
        num_samples: samples in the stream.
        sequence_length: distance from the begin of a sample to the next.
        block_documents: documents summed at a time; bounds memory, does not change the result.

    Returns:
        ``[num_samples + 1, 2]``: position in ``documents`` and token within that document.
    """
    wide = max(len(documents), int(sizes.max(initial=0))) > np.iinfo(np.int32).max
    boundaries = np.zeros((num_samples + 1, 2), dtype=np.int64 if wide else np.int32)
    found = 1  # the first sample begins at the first token of the first document
    tokens_before = 0
    for start in range(0, len(documents), block_documents):
        # where each document of the block begins in the stream, and where the last one ends
        lengths = sizes[documents[start : start + block_documents]]
        edges = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=edges[1:])
        edges += tokens_before
        # sample k begins at token k * sequence_length of the stream, in the first document that ends behind it
        rows = slice(found, min((int(edges[-1]) - 1) // sequence_length, num_samples) + 1)
        begins = np.arange(rows.start, rows.stop, dtype=np.int64) * sequence_length
        at = np.searchsorted(edges[1:], begins, side="right")
        boundaries[rows, 0] = at + start
        boundaries[rows, 1] = begins - edges[at]
        found = max(found, rows.stop)
        tokens_before = int(edges[-1])
    assert found == num_samples + 1, f"{tokens_before} tokens hold {found - 1} samples, not {num_samples}"
    return boundaries


def _shuffled_documents(count: int, plan: EpochPlan, random: np.random.RandomState) -> NDArray[Any]:
    dtype = np.int64 if count > np.iinfo(np.int32).max else np.int32
    groups = [plan.epochs - 1, 1] if plan.separate_last else [plan.epochs]
    documents = np.tile(np.arange(count, dtype=dtype), plan.epochs)
    _shuffle_parts(documents, [count * group for group in groups], random)
    return documents


def _shuffled_samples(plan: EpochPlan, random: np.random.RandomState) -> NDArray[Any]:
    dtype = np.int64 if plan.samples >= np.iinfo(np.uint32).max - 1 else np.uint32
    samples = np.arange(plan.samples, dtype=dtype)
    _shuffle_parts(samples, [plan.samples_before_last, plan.samples - plan.samples_before_last], random)
    return samples


def _shuffle_parts(array: NDArray[Any], lengths: list[int], random: np.random.RandomState) -> None:
    """Shuffles consecutive parts in place, one after the other; an empty part draws nothing."""
    start = 0
    for length in lengths:
        random.shuffle(array[start : start + length])
        start += length
