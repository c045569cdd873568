"""How fast samples are read in random order: ours and Megatron-core's ``GPTDataset``, in turn.

Run from the checkout: ``python -W ignore -m benchmarks.reading``. One core; both read the same files, which the page
cache holds, and the same samples in the same order (their order is checked to be ours, and their tokens are compared).
Medians of CPU seconds over interleaved rounds. "query" is what finds and copies a sample's tokens, "sample" is all that
a data loader calls: ours adds the check of every id against the vocabulary, Megatron-core's the split into tokens,
labels and masks.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset as MegatronIndexedDataset
from megatron.core.datasets.utils import Split

from megatron_poro.data.index_cache import IndexCache
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.indexed_writer import IndexedWriter
from megatron_poro.data.samples import SampleIndex
from megatron_poro.data.source import IndexedSource

VOCAB_SIZE = 128_000
MEAN_TOKENS = 1000
SEQUENCE_LENGTH = 2048
SEED = 1234


class NoTokenizer:
    """What Megatron-core's dataset asks of a tokenizer when it only reads ids."""

    vocab_size = VOCAB_SIZE
    eod = 2
    pad = -1
    unique_identifiers = ("none",)


def main() -> None:
    """Prints samples per CPU-second for both, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000_000, help="tokens of the dataset (default: 100 million)")
    parser.add_argument("--samples", type=int, default=10_000, help="samples a round (default: 10000)")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "corpus"
        _write(prefix, arguments.tokens)
        num_samples = (IndexedDataset(prefix).num_tokens - 1) // SEQUENCE_LENGTH
        ours, theirs = _ours(prefix, num_samples), _theirs(prefix, num_samples)
        source = IndexedSource("corpus", ours, vocab_size=VOCAB_SIZE)
        assert (ours.order.shuffle == theirs.shuffle_index).all(), "the two orders differ"
        numbers = np.random.default_rng(SEED).integers(num_samples, size=arguments.samples).tolist()
        for number in numbers:  # also brings the pages in
            assert (ours.sample(number)[:-1] == theirs[number]["tokens"].numpy()).all(), f"sample {number} differs"
        query = theirs._query_document_sample_shuffle_indices
        _compare("query", ours.sample, query, numbers, arguments.rounds)
        _compare("sample", source.sample, theirs.__getitem__, numbers, arguments.rounds)


def _compare(
    what: str, ours: Callable[[int], Any], theirs: Callable[[int], Any], numbers: list[int], rounds: int
) -> None:
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for read, found in zip((ours, theirs), seconds, strict=True):
            started = time.process_time()
            for number in numbers:
                read(number)
            found.append(time.process_time() - started)
    mine, other = (len(numbers) / statistics.median(found) for found in seconds)
    print(
        f"{what:6}  ours {mine:9,.0f}/s  megatron-core {other:9,.0f}/s  ours / theirs {mine / other:5.2f}", flush=True
    )


def _write(prefix: Path, tokens: int) -> None:
    random = np.random.default_rng(SEED)
    with IndexedWriter(prefix, vocab_size=VOCAB_SIZE) as writer:
        while writer.num_tokens < tokens:
            sizes = random.lognormal(np.log(MEAN_TOKENS) - 0.5, 1.0, 1000).astype(np.int32) + 1
            writer.append_many(random.integers(VOCAB_SIZE, size=int(sizes.sum()), dtype=np.int32), sizes)


def _ours(prefix: Path, num_samples: int) -> SampleIndex:
    return SampleIndex(
        IndexedDataset(prefix),
        num_samples=num_samples,
        sequence_length=SEQUENCE_LENGTH,
        seed=SEED,
        cache=IndexCache(prefix.parent / "index"),
    )


def _theirs(prefix: Path, num_samples: int) -> GPTDataset:
    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=SEQUENCE_LENGTH,
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(prefix.parent / "their_index"),
        tokenizer=NoTokenizer(),
    )
    config.mock = False
    low_level = MegatronIndexedDataset(str(prefix))
    documents = np.arange(len(low_level), dtype=np.int32)
    return GPTDataset(low_level, str(prefix), documents, num_samples, Split.train, config)


if __name__ == "__main__":
    main()
