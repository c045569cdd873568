from pathlib import Path

import numpy as np
import pytest

from megatron_poro.config.data import SourceConfig
from megatron_poro.data.blending import normalised
from megatron_poro.data.index_cache import IndexCache
from megatron_poro.data.indexed_writer import IndexedWriter
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.data.mixture import Mixture, build_mixture
from megatron_poro.data.samples import SampleIndex
from megatron_poro.errors import ConfigError, DataError
from tests.unit.data.datasets import random_documents, small_mixture, write_dataset
from tests.unit.data.megatron_order import blend_by_loop


def build(
    folder: Path, *sources: SourceConfig, vocab_size: int = 100, expected_tokenizer: str | None = None
) -> Mixture:
    return build_mixture(
        sources,
        num_samples=10,
        sequence_length=4,
        seed=42,
        index_cache=folder / "cache",
        vocab_size=vocab_size,
        expected_tokenizer=expected_tokenizer,
    )


def source(folder: Path, name: str = "a", *, weight: float = 1.0) -> SourceConfig:
    return SourceConfig(name=name, path=str(folder / name), weight=weight)


def write_with_side_file(prefix: Path, *, max_token_id: int = 9) -> None:
    with IndexedWriter(prefix, vocab_size=100) as writer:
        writer.append([1, 2, 9])
        writer.commit(
            DatasetMetadata(
                tokenizer="made-with",
                vocab_size=100,
                documents=1,
                tokens=3,
                max_token_id=max_token_id,
                empty_documents=0,
                inputs=("a.jsonl",),
            )
        )


def test_samples_come_from_the_blended_place_of_megatrons_order(tmp_path: Path) -> None:
    weights = [0.5, 0.3, 0.2]
    mixture = small_mixture(tmp_path, weights=weights)
    requests = [33, 20, 13]  # 64 * weight * 1.005, rounded up
    indices = [
        SampleIndex(
            write_dataset(tmp_path / f"again-{position}", random_documents(position, 20)),
            num_samples=request,
            sequence_length=8,
            seed=42,
            cache=IndexCache(tmp_path / "other"),
        )
        for position, request in enumerate(requests)
    ]
    sources, samples = blend_by_loop(normalised(weights).tolist(), 64)
    for number in range(64):
        sample, position = mixture.sample(number)
        assert position == sources[number]
        assert sample.tokens.tolist() == indices[position].sample(samples[number]).tolist()
        assert sample.loss_mask is None


def test_mixture_knows_its_names_and_counts(tmp_path: Path) -> None:
    mixture = small_mixture(tmp_path)
    assert (mixture.names, len(mixture)) == (("a", "b"), 64)
    drawn = [mixture.sample(number)[1] for number in range(20)]
    assert mixture.consumed(20).tolist() == np.bincount(drawn, minlength=2).tolist()


def test_epochs_are_tokens_read_by_tokens_there_are(tmp_path: Path) -> None:
    mixture = small_mixture(tmp_path)
    sizes = [sum(map(len, random_documents(position, 20))) for position in range(2)]
    for samples in (0, 1, 33, 64):
        read = mixture.consumed(samples) * 8
        np.testing.assert_allclose(mixture.epochs(samples), read / sizes, rtol=1e-12)


def test_pieces_are_the_tokens_of_the_sample(tmp_path: Path) -> None:
    """Cut across documents: put together they are the sample, and each lies within its document."""
    mixture = small_mixture(tmp_path)
    documents = [random_documents(position, 20) for position in range(2)]
    for number in range(64):
        sample, source = mixture.sample(number)
        pieces = mixture.pieces(number)
        assert mixture.place(number).source == source
        assert all(0 <= begin < end <= len(documents[source][document]) for document, begin, end in pieces)
        joined = [token for document, begin, end in pieces for token in documents[source][document][begin:end]]
        assert joined == sample.tokens.tolist()


def test_building_again_reads_the_cache_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "a", random_documents(0, 5))
    first = build(tmp_path, source(tmp_path))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    monkeypatch.delattr("megatron_poro.data.index_cache.np.save")
    second = build(tmp_path, source(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == files
    for number in range(10):
        assert first.sample(number)[0].tokens.tolist() == second.sample(number)[0].tokens.tolist()


def test_source_shorter_than_its_share_is_repeated(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1, 2, 3]])
    mixture = build(tmp_path, source(tmp_path))
    assert all(set(mixture.sample(number)[0].tokens.tolist()) == {1, 2, 3} for number in range(10))


def test_other_tokenizer_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    write_with_side_file(tmp_path / "a")
    build(tmp_path, source(tmp_path), expected_tokenizer="made-with")
    with pytest.raises(DataError, match=r"a was made with tokenizer made-with, this run uses another\."):
        build(tmp_path, source(tmp_path), expected_tokenizer="another")


def test_dataset_without_side_file_passes_the_tokenizer_check(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1, 2, 9]])
    assert len(build(tmp_path, source(tmp_path), expected_tokenizer="another")) == 10


def test_id_beyond_the_vocabulary_is_known_from_the_side_file(tmp_path: Path) -> None:
    write_with_side_file(tmp_path / "a", max_token_id=70)
    with pytest.raises(DataError, match=r"a\.bin holds token id 70, but model\.vocab_size=70"):
        build(tmp_path, source(tmp_path), vocab_size=70)


def test_id_beyond_the_vocabulary_is_found_without_a_side_file(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1, 70, 2]])
    build(tmp_path, source(tmp_path), vocab_size=71)
    with pytest.raises(DataError, match=r"a\.bin holds token id 70, but model\.vocab_size=70"):
        build(tmp_path, source(tmp_path), vocab_size=70)


@pytest.mark.parametrize("token", [70, -1])
def test_id_that_the_start_missed_is_found_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: int
) -> None:
    """Without a side file only a part of a large dataset is looked at when a run starts."""
    monkeypatch.setattr("megatron_poro.data.mixture.MAX_SCANNED_TOKENS", 1)
    monkeypatch.setattr("megatron_poro.data.indexed._SCAN_TOKENS", 1)
    write_dataset(tmp_path / "a", [[1, 70, 2, 3]], vocab_size=128_000)
    content = np.fromfile(tmp_path / "a.bin", dtype="<i4")
    content[1] = token
    content.tofile(tmp_path / "a.bin")
    mixture = build(tmp_path, source(tmp_path), vocab_size=70)
    with pytest.raises(DataError, match=rf"a\.bin holds token id {token}, but model\.vocab_size=70"):
        mixture.sample(0)


def test_missing_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.idx does not exist"):
        build(tmp_path, source(tmp_path))


def test_names_must_differ(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1]])
    with pytest.raises(ConfigError, match="source name 'a' appears 2 times"):
        build(tmp_path, source(tmp_path), source(tmp_path))


def test_mixture_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 to 255 sources, this one has 0"):
        build(tmp_path)


def test_weights_must_be_positive(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1]])
    with pytest.raises(ConfigError, match=r"weight 0\.0 of source 0"):
        build(tmp_path, source(tmp_path, weight=0.0))


def test_mixture_of_no_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mixture of 0 samples"):
        small_mixture(tmp_path, num_samples=0)


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1]])
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*cache"):
        build(tmp_path, source(tmp_path))
