"""A mixture: several sources, and which of them each sample comes from. ``build_mixture`` makes one from its config.

Building is idempotent and may be done by every rank; to spare the disk, let one rank build first and the others then
open what it left in the cache.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_poro.config.data import SourceConfig
from megatron_poro.data.blending import Blend, Place, samples_to_request
from megatron_poro.data.index_cache import IndexCache
from megatron_poro.data.indexed import IndexedDataset, outside_vocabulary
from megatron_poro.data.mixture_plan import plan_mixture, require_epochs
from megatron_poro.data.samples import Piece, SampleIndex, document_range
from megatron_poro.data.source import IndexedSource, Sample, Source
from megatron_poro.errors import ConfigError, DataError

MAX_SCANNED_TOKENS = 1 << 26
"""Tokens looked at for ids outside the vocabulary when a dataset has no side file; every sample read is checked too."""


class Mixture:
    """Numbered samples drawn from several sources; a pure function of the number.

    Attributes:
        names: of the sources, in order; ``Batch.sources`` holds positions in it.
    """

    def __init__(self, sources: Sequence[Source], blend: Blend) -> None:
        assert len(sources) == len(blend.weights), "one weight per source"
        self.names = tuple(source.name for source in sources)
        self._sources = tuple(sources)
        self._blend = blend

    def __len__(self) -> int:
        return len(self._blend)

    def sample(self, number: int) -> tuple[Sample, int]:
        """Sample ``number`` of the mixture, and the position of the source it comes from."""
        place = self._blend.place(number)
        return self._sources[place.source].sample(place.sample), place.source

    def consumed(self, samples: int) -> NDArray[np.int64]:
        """How many of the first ``samples`` samples came from each source, int64 ``[sources]``."""
        return self._blend.consumed(samples)

    def epochs(self, samples: int) -> NDArray[np.float64]:
        """How many times each source has been read after the first ``samples`` samples, fp64 ``[sources]``."""
        per_epoch = np.array([source.samples_per_epoch for source in self._sources])
        read: NDArray[np.float64] = self.consumed(samples) / per_epoch
        return read

    def place(self, number: int) -> Place:
        """Which source sample ``number`` comes from, and which sample of that source it is."""
        return self._blend.place(number)

    def pieces(self, number: int) -> list[Piece]:
        """The parts of its source's documents that sample ``number`` is made of."""
        place = self._blend.place(number)
        return self._sources[place.source].pieces(place.sample)


def build_mixture(
    sources: Sequence[SourceConfig],
    *,
    num_samples: int,
    sequence_length: int,
    seed: int,
    index_cache: Path | str,
    vocab_size: int,
    expected_tokenizer: str | None,
    max_epochs: float | None = None,
) -> Mixture:
    """Opens, checks and blends the sources of a mixture; missing indices are built and cached.

    A source that is too short for its share is read for as many epochs as it takes. All arguments but the last four
    decide the order of the samples: a run that is continued must pass the same ones.

    Args:
        sources: in the order that decides ties of the blend.
        num_samples: samples the whole run takes, not the part until its next stop.
        sequence_length: tokens the model sees per sample.
        seed: of the shuffles; the same for every source, as in Megatron.
        index_cache: folder for the indices.
        vocab_size: rows of the model's embedding; ids must be below.
        expected_tokenizer: fingerprint of the tokenizer the model is trained with; None does not check it.
        max_epochs: times that a source may be read; None sets no limit.

    Raises:
        ConfigError: if there are no sources or samples, two sources share a name, a weight is not positive, or a
            source would be read more often than ``max_epochs``.
        DataError: if a dataset is missing, damaged, made with another tokenizer, or has ids outside the vocabulary.
    """
    names = [source.name for source in sources]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"source name {repeated[0]!r} appears {names.count(repeated[0])} times in one mixture.")
    if num_samples < 1:
        raise ConfigError(f"a mixture of {num_samples} samples was asked for; it needs at least 1.")
    if max_epochs is not None:
        require_epochs(plan_mixture(sources, num_samples=num_samples, sequence_length=sequence_length), max_epochs)
    weights = [source.weight for source in sources]
    cache = IndexCache(index_cache)
    blend = Blend(weights, num_samples=num_samples, cache=cache)
    opened: list[Source] = []
    for source, request in zip(sources, samples_to_request(weights, num_samples), strict=True):
        dataset = IndexedDataset(source.path)
        check_tokens(dataset, vocab_size=vocab_size, expected_tokenizer=expected_tokenizer, cache=cache)
        index = SampleIndex(
            dataset,
            num_samples=request,
            sequence_length=sequence_length,
            seed=seed,
            cache=cache,
            documents=document_range(dataset.num_documents, start=source.start, end=source.end),
        )
        opened.append(IndexedSource(source.name, index, vocab_size=vocab_size))
    return Mixture(opened, blend)


def check_tokens(
    dataset: IndexedDataset, *, vocab_size: int, expected_tokenizer: str | None, cache: IndexCache
) -> None:
    """Refuses a dataset whose ids the model cannot have been meant for.

    With a side file this reads nothing else. Without one, the largest id is looked for once, in a bounded part of the
    file, and remembered in the cache.

    Raises:
        DataError: if the tokenizer differs, an id is outside the vocabulary, or the side file is of another dataset.
    """
    metadata = dataset.metadata()
    if metadata is not None and expected_tokenizer is not None and metadata.tokenizer != expected_tokenizer:
        raise DataError(
            f"dataset {dataset.prefix} was made with tokenizer {metadata.tokenizer}, this run uses "
            f"{expected_tokenizer}. Tokenize the corpus again, or set tokenizer.path to the right one."
        )
    largest = _scanned_max_token_id(dataset, cache) if metadata is None else metadata.max_token_id
    if largest >= vocab_size:
        raise outside_vocabulary(dataset, largest, vocab_size)


def _scanned_max_token_id(dataset: IndexedDataset, cache: IndexCache) -> int:
    facts = {
        "kind": "max_token_id",
        "dataset": str(dataset.prefix.resolve()),
        "digest": dataset.digest,
        "tokens": dataset.num_tokens,
        "limit": MAX_SCANNED_TOKENS,
    }

    def build() -> dict[str, NDArray[np.int64]]:
        return {"largest": np.array([dataset.max_token_id(MAX_SCANNED_TOKENS)], dtype=np.int64)}

    return int(cache.arrays(dataset.prefix.name, facts, build)["largest"][0])
