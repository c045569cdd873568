"""Small indexed datasets and mixtures for the tests of the data room."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_poro.config.data import SourceConfig
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.indexed_writer import IndexedWriter
from megatron_poro.data.mixture import Mixture, build_mixture

VOCAB_SIZE = 100


def write_dataset(prefix: Path, documents: Sequence[Sequence[int]], *, vocab_size: int = VOCAB_SIZE) -> IndexedDataset:
    """A dataset without a side file, as Megatron would write it."""
    with IndexedWriter(prefix, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.append(np.array(document, dtype=np.int64))
    return IndexedDataset(prefix)


def random_documents(seed: int, count: int, *, longest: int = 30) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(VOCAB_SIZE, size=random.integers(1, longest + 1)).tolist() for _ in range(count)]


def small_mixture(folder: Path, *, num_samples: int = 64, weights: Sequence[float] = (0.6, 0.4)) -> Mixture:
    """Sources a, b, ... of 20 documents each, sequence length 8."""
    sources = []
    for position, weight in enumerate(weights):
        name = "abcdef"[position]
        write_dataset(folder / name, random_documents(position, 20))
        sources.append(SourceConfig(name=name, path=str(folder / name), weight=weight))
    return build_mixture(
        sources,
        num_samples=num_samples,
        sequence_length=8,
        seed=42,
        index_cache=folder / "cache",
        vocab_size=VOCAB_SIZE,
        expected_tokenizer=None,
    )
