"""Our order against the one of Megatron-core itself: its own functions and its compiled helper, element by element.

Megatron-core shuffles a short last epoch on its own below 80 % of an epoch where the version that trained Poro 34B says
95 %. That number is set to theirs here and is the only thing that is.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets import helpers
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import (
    GPTDataset,
    GPTDatasetConfig,
    _build_document_index,
    _build_shuffle_index,
)
from megatron.core.datasets.indexed_dataset import IndexedDataset as MegatronIndexedDataset
from megatron.core.datasets.utils import Split
from numpy.typing import NDArray

from megatron_poro.cli.data import main
from megatron_poro.config.data import SourceConfig
from megatron_poro.config.load import load_config
from megatron_poro.data import samples
from megatron_poro.data.blending import STRETCH, choose, normalised, samples_to_request
from megatron_poro.data.index_cache import IndexCache
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.mixture import build_mixture
from megatron_poro.data.samples import SampleIndex, build_order, document_range, plan_epochs
from megatron_poro.tokenizer.tokenizer import Tokenizer
from tests.unit.data.datasets import VOCAB_SIZE, random_documents, write_dataset
from tests.unit.data_prep import raw_corpora

PORO_WEIGHTS = [0.5415810341, 0.1304808053, 0.004023063515, 0.004016818638, 0.3153543717, 0.004543906834]
THEIR_BORDER = 0.80


class NoTokenizer:
    """What Megatron-core's dataset asks of a tokenizer when it only reads ids."""

    vocab_size = VOCAB_SIZE
    eod = 0
    pad = -1
    unique_identifiers = ("none",)


def their_dataset(
    prefix: Path, *, num_samples: int, sequence_length: int, seed: int, documents: NDArray[np.int32] | None = None
) -> GPTDataset:
    """Megatron-core's dataset over the files that we wrote, or over some of their documents."""
    low_level = MegatronIndexedDataset(str(prefix))
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=sequence_length,
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=None,
        tokenizer=NoTokenizer(),
    )
    config.mock = False
    if documents is None:
        documents = np.arange(len(low_level), dtype=np.int32)
    return GPTDataset(low_level, str(prefix), documents, num_samples, Split.train, config)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=60).filter(lambda sizes: sum(sizes) > 1),
    num_samples=st.integers(1, 150),
    sequence_length=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_order_is_that_of_their_functions(sizes: list[int], num_samples: int, sequence_length: int, seed: int) -> None:
    """Whatever the plan of epochs is, so that theirs is not needed here."""
    lengths = np.array(sizes, dtype=np.int32)
    order = build_order(lengths, num_samples=num_samples, sequence_length=sequence_length, seed=seed)
    plan = plan_epochs(sum(sizes), num_samples=num_samples, sequence_length=sequence_length)
    random = np.random.RandomState(seed)
    documents = _build_document_index(np.arange(len(sizes)), plan.epochs, random, plan.separate_last)
    boundaries = helpers.build_sample_idx(lengths, documents, sequence_length, plan.epochs, sum(sizes), True, True)
    shuffle = _build_shuffle_index(plan.samples_before_last, plan.samples, random)
    for ours, theirs in zip(order, (documents, boundaries, shuffle), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("num_samples", [1, 20, 43, 44, 60, 61, 80, 100, 200])
def test_their_dataset_reads_ours_and_yields_the_same_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_samples: int
) -> None:
    """One to several epochs, with a last one that is shuffled on its own and one that is not."""
    monkeypatch.setattr(samples, "SEPARATE_LAST_EPOCH_BELOW", THEIR_BORDER)
    write_dataset(tmp_path / "a", random_documents(3, 25))
    theirs = their_dataset(tmp_path / "a", num_samples=num_samples, sequence_length=9, seed=77)
    ours = SampleIndex(
        IndexedDataset(tmp_path / "a"),
        num_samples=num_samples,
        sequence_length=9,
        seed=77,
        cache=IndexCache(tmp_path / "cache"),
    )
    for mine, other in zip(ours.order, (theirs.document_index, theirs.sample_index, theirs.shuffle_index), strict=True):
        np.testing.assert_array_equal(mine, other)
    for number in range(num_samples):
        sample = theirs[number]
        tokens = ours.sample(number)
        np.testing.assert_array_equal(tokens[:-1], sample["tokens"])
        np.testing.assert_array_equal(tokens[1:], sample["labels"])


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.5, 1.0), (0.1, 0.94), (0.02, 0.98), (0.5, 0.58), (0.0, 1.0)])
def test_part_of_a_dataset_is_that_of_their_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: float, end: float
) -> None:
    """25 documents: halves are rounded as theirs are."""
    monkeypatch.setattr(samples, "SEPARATE_LAST_EPOCH_BELOW", THEIR_BORDER)
    write_dataset(tmp_path / "a", random_documents(3, 25))
    dataset = IndexedDataset(tmp_path / "a")
    # what BlendedMegatronDatasetBuilder makes of a share of its split matrix
    documents = np.arange(round(start * float(25)), round(end * float(25)), dtype=np.int32)
    ours = SampleIndex(
        dataset,
        num_samples=60,
        sequence_length=9,
        seed=7,
        cache=IndexCache(tmp_path / "cache"),
        documents=document_range(25, start=start, end=end),
    )
    theirs = their_dataset(tmp_path / "a", num_samples=60, sequence_length=9, seed=7, documents=documents)
    np.testing.assert_array_equal(ours.order.documents + ours.documents.start, theirs.document_index)
    for number in range(60):
        np.testing.assert_array_equal(ours.sample(number)[:-1], theirs[number]["tokens"])
        assert {piece.document for piece in ours.pieces(number)} <= set(documents.tolist())


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12), num_samples=st.integers(1, 2 * STRETCH))
def test_blend_is_that_of_their_compiled_helper(weights: list[float], num_samples: int) -> None:
    shares = normalised(weights)
    theirs, their_samples = np.zeros(num_samples, dtype=np.int16), np.zeros(num_samples, dtype=np.int64)
    helpers.build_blending_indices(theirs, their_samples, shares, len(shares), num_samples, False)
    choices = choose(shares, num_samples)
    np.testing.assert_array_equal(choices.sources, theirs)
    for source in range(len(shares)):
        np.testing.assert_array_equal(their_samples[theirs == source], np.arange(np.sum(theirs == source)))


def test_their_blended_dataset_yields_our_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SEPARATE_LAST_EPOCH_BELOW", THEIR_BORDER)
    for position in range(len(PORO_WEIGHTS)):
        write_dataset(tmp_path / f"source{position}", random_documents(position, 20 + 10 * position))
    sources = [
        SourceConfig(name=f"source{position}", path=str(tmp_path / f"source{position}"), weight=weight)
        for position, weight in enumerate(PORO_WEIGHTS)
    ]
    assert_same_mixture(sources, tmp_path / "cache", vocab_size=VOCAB_SIZE)


def test_they_read_what_prepare_makes_of_raw_corpora_to_our_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "SEPARATE_LAST_EPOCH_BELOW", THEIR_BORDER)
    raw_corpora.write_all(tmp_path / "raw")
    words = [
        "experiment=smoke_cpu",
        "model.vocab_size=384",
        f"data.folder={tmp_path / 'data'}",
        f"tokenizer.path={tmp_path / 'tokenizer'}",
    ]
    recipes = Path(__file__).parents[3] / "data_prep" / "recipes" / "poro_34b"
    assert main(["prepare", *words, "--recipes", str(recipes), "--raw", str(tmp_path / "raw"), "--workers", "1"]) == 0
    sources = load_config(words).data.train
    assert [source.name for source in sources][:2] == ["slimpajama", "finnish"]
    fingerprint = Tokenizer.load(tmp_path / "tokenizer").fingerprint
    assert_same_mixture(sources, tmp_path / "cache", vocab_size=384, expected_tokenizer=fingerprint)


def assert_same_mixture(
    sources: Sequence[SourceConfig], cache: Path, *, vocab_size: int, expected_tokenizer: str | None = None
) -> None:
    """Every sample of a mixture, as Megatron-core reads it and as we do."""
    num_samples, sequence_length, seed = 600, 8, 5
    weights = [source.weight for source in sources]
    datasets = [
        their_dataset(Path(source.path), num_samples=request, sequence_length=sequence_length, seed=seed)
        for source, request in zip(sources, samples_to_request(weights, num_samples), strict=True)
    ]
    theirs = BlendedDataset(datasets, weights, num_samples, datasets[0].config)
    ours = build_mixture(
        sources,
        num_samples=num_samples,
        sequence_length=sequence_length,
        seed=seed,
        index_cache=cache,
        vocab_size=vocab_size,
        expected_tokenizer=expected_tokenizer,
    )
    for number in range(num_samples):
        sample, source = ours.sample(number)
        their_sample = theirs[number]
        assert source == their_sample["dataset_id"]
        np.testing.assert_array_equal(sample.tokens[:-1], their_sample["tokens"])
        np.testing.assert_array_equal(sample.tokens[1:], their_sample["labels"])
