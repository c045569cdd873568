from pathlib import Path

import pytest

from megatron_poro.config.data import SourceConfig
from megatron_poro.data.mixture import build_mixture
from megatron_poro.data.mixture_plan import plan_mixture, require_epochs
from megatron_poro.errors import ConfigError, DataError
from tests.unit.data.datasets import write_dataset


def source(folder: Path, name: str, *, weight: float) -> SourceConfig:
    return SourceConfig(name=name, path=str(folder / name), weight=weight)


def two_sources(folder: Path) -> list[SourceConfig]:
    """100 samples of 4 tokens, three of four from a: 300 of 60 tokens; 100 of 200."""
    write_dataset(folder / "a", [[1] * 20] * 3)
    write_dataset(folder / "b", [[1] * 100] * 2)
    return [source(folder, "a", weight=3.0), source(folder, "b", weight=1.0)]


def test_plan_is_the_arithmetic_done_by_hand(tmp_path: Path) -> None:
    a, b = plan_mixture(two_sources(tmp_path), num_samples=100, sequence_length=4)
    assert (a.name, a.weight, a.samples, a.tokens_read, a.tokens_available, a.epochs) == ("a", 0.75, 75, 300, 60, 5.0)
    assert (b.name, b.weight, b.samples, b.tokens_read, b.tokens_available, b.epochs) == ("b", 0.25, 25, 100, 200, 0.5)
    assert (a.remark, b.remark) == ("", "")


def test_source_without_files_is_planned_without_epochs(tmp_path: Path) -> None:
    (plan,) = plan_mixture([source(tmp_path, "a", weight=1.0)], num_samples=10, sequence_length=4)
    assert (plan.tokens_read, plan.tokens_available, plan.epochs) == (40, None, None)
    assert plan.remark == f"{tmp_path / 'a'}.idx does not exist"
    require_epochs([plan], 0.1)


def test_index_alone_is_enough(tmp_path: Path) -> None:
    sources = two_sources(tmp_path)
    (tmp_path / "a.bin").unlink()
    plan, _ = plan_mixture(sources, num_samples=100, sequence_length=4)
    assert (plan.epochs, plan.remark) == (5.0, f"{tmp_path / 'a'}.bin does not exist; its .idx does")


def test_tokens_of_another_length_than_the_index_says_are_refused(tmp_path: Path) -> None:
    sources = two_sources(tmp_path)
    (tmp_path / "a.bin").write_bytes(bytes(118))
    with pytest.raises(DataError, match=r"a\.bin has 118 bytes, but a\.idx describes 120"):
        plan_mixture(sources, num_samples=100, sequence_length=4)


def test_dataset_without_tokens_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [])
    with pytest.raises(DataError, match="a holds no tokens"):
        plan_mixture([source(tmp_path, "a", weight=1.0)], num_samples=1, sequence_length=4)


def test_more_epochs_than_stated_are_refused_by_the_plan(tmp_path: Path) -> None:
    plans = plan_mixture(two_sources(tmp_path), num_samples=100, sequence_length=4)
    for allowed in (5.0, 5.1, None):
        require_epochs(plans, allowed)
    with pytest.raises(
        ConfigError, match=r"data\.max_epochs=4\.9, but a would be read 5\.00 times \(300 of 60 tokens\)"
    ):
        require_epochs(plans, 4.9)
    with pytest.raises(ConfigError, match=r"a would be read 5\.00 times .*; b would be read 0\.50 times"):
        require_epochs(plans, 0.4)


@pytest.mark.parametrize(("max_epochs", "refused"), [(4.9, True), (5.0, False), (None, False)])
def test_more_epochs_than_stated_are_refused_before_anything_is_built(
    tmp_path: Path, max_epochs: float | None, refused: bool
) -> None:
    sources = two_sources(tmp_path)

    def build() -> None:
        build_mixture(
            sources,
            num_samples=100,
            sequence_length=4,
            seed=1,
            index_cache=tmp_path / "cache",
            vocab_size=100,
            expected_tokenizer=None,
            max_epochs=max_epochs,
        )

    if refused:
        with pytest.raises(ConfigError, match=r"data\.max_epochs=4\.9"):
            build()
    else:
        build()
    assert (tmp_path / "cache").exists() != refused


def test_part_of_a_dataset_has_the_tokens_of_its_documents(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1] * 20, [1] * 30, [1] * 50])
    part = SourceConfig(name="a", path=str(tmp_path / "a"), weight=1.0, start=1 / 3, end=1.0)
    for _ in ("with its .bin", "without"):
        (plan,) = plan_mixture([part], num_samples=40, sequence_length=4)
        assert (plan.tokens_read, plan.tokens_available, plan.epochs) == (160, 80, 2.0)
        (tmp_path / "a.bin").unlink(missing_ok=True)


def test_part_without_a_document_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1] * 20] * 3)
    nothing = SourceConfig(name="a", path=str(tmp_path / "a"), weight=1.0, start=0.0, end=0.1)
    with pytest.raises(DataError, match=r"the part of dataset .*a between start and end holds no tokens"):
        plan_mixture([nothing], num_samples=40, sequence_length=4)
    with pytest.raises(DataError, match=r"the part of dataset .*a between start and end holds no tokens"):
        build_mixture(
            [nothing],
            num_samples=4,
            sequence_length=4,
            seed=1,
            index_cache=tmp_path / "cache",
            vocab_size=10,
            expected_tokenizer=None,
        )
