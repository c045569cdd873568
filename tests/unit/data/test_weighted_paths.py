"""The mixture file of the original run."""

from pathlib import Path

import pytest

from megatron_poro.config.data import SourceConfig
from megatron_poro.config.load import load_config
from megatron_poro.data.weighted_paths import WeightedPath, read_weighted_paths, source_configs
from megatron_poro.errors import DataError


def write(folder: Path, content: str) -> Path:
    path = folder / "mixture.txt"
    path.write_text(content, encoding="utf-8")
    return path


def test_the_published_line_of_poro_is_the_mixture_of_the_config(tmp_path: Path) -> None:
    train = load_config(["experiment=poro_34b"]).data.train
    entries = ", ".join(f"{source.weight} 0:1 {source.path}" for source in train)
    groups = read_weighted_paths(write(tmp_path, f'"TRAIN: {entries}"\n'))
    assert list(groups) == ["TRAIN"]
    sources = source_configs(groups["TRAIN"], where="TRAIN")
    assert [(source.path, source.weight) for source in sources] == [(source.path, source.weight) for source in train]
    assert sources[0].name == "merged_slimpajama"


def test_groups_are_kept_apart_and_in_order(tmp_path: Path) -> None:
    content = "\"FI: 0.7 0:0.05 d/fi,0.3 0.5:1 d/fi2\" 'EN:1 0:1 d/en'"
    groups = read_weighted_paths(write(tmp_path, content))
    assert list(groups) == ["FI", "EN"]
    assert groups["FI"] == (
        WeightedPath(weight=0.7, start=0.0, end=0.05, path="d/fi"),
        WeightedPath(weight=0.3, start=0.5, end=1.0, path="d/fi2"),
    )
    assert source_configs(groups["EN"], where="EN") == [SourceConfig(name="en", path="d/en", weight=1.0)]


def test_fractions_become_the_part_that_a_source_reads(tmp_path: Path) -> None:
    groups = read_weighted_paths(write(tmp_path, '"A: 1 0:0.95 d/fi"'))
    expected = SourceConfig(name="fi", path="d/fi", weight=1.0, start=0.0, end=0.95)
    assert source_configs(groups["A"], where="A") == [expected]


def test_sources_that_would_share_a_name_are_refused(tmp_path: Path) -> None:
    groups = read_weighted_paths(write(tmp_path, '"A: 1 0:1 d/fi, 1 0:1 e/fi"'))
    with pytest.raises(DataError, match="two paths end in 'fi'"):
        source_configs(groups["A"], where="A")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "'nothing' is not a group"),
        ("A: 1 0:1 d/a", "'A: 1 0:1 d/a' is not a group in quotation marks"),
        ('"A: 1 0:1 d/a" B', "'B' is not a group in quotation marks"),
        ('"A 1 d/a"', "is not of the form GROUP: weight"),
        ('"A: "', "is not of the form GROUP: weight"),
        ('"A: 1 0:1 d/a" "A: 1 0:1 d/b"', "two groups called 'A'"),
        ('"A: 1 0:1"', "group A: '1 0:1' is not of the form weight start:end path"),
        ('"A: 1 0:1 d/a,"', "group A: '' is not of the form weight start:end path"),
        ('"A: one 0:1 d/a"', "group A: 'one 0:1 d/a' is not of the form"),
        ('"A: 1 0-1 d/a"', "group A: '1 0-1 d/a' is not of the form"),
        ('"A: 0 0:1 d/a"', "weight 0 of d/a must be positive"),
        ('"A: nan 0:1 d/a"', "weight nan of d/a must be positive"),
        ('"A: 1 0.5:0.5 d/a"', "documents 0.5:0.5 of d/a must be 0 <= start < end <= 1"),
        ('"A: 1 0:1.5 d/a"', "documents 0:1.5 of d/a must be"),
    ],
)
def test_other_forms_are_refused(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_weighted_paths(write(tmp_path, content))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere cannot be read"):
        read_weighted_paths(tmp_path / "nowhere")
