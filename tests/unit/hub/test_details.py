"""What a card file may say, and what is said to one that is wrong."""

from pathlib import Path

import pytest

from megatron_poro.config.paths import CARDS_FOLDER, config_dir
from megatron_poro.errors import ConfigError
from megatron_poro.hub.details import read_details


@pytest.mark.parametrize("path", sorted((config_dir() / CARDS_FOLDER).glob("*.yaml")), ids=lambda path: path.stem)
def test_packaged_cards_are_read_by_name(path: Path) -> None:
    assert read_details(path.stem).limitations is not None
    assert path.read_text().startswith("# ")


def test_a_file_is_laid_over_the_default_prose(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("title: Tiny\nlimitations: Many.\n")
    details = read_details(str(tmp_path / "mine.yaml"))
    assert (details.title, details.limitations) == ("Tiny", "Many.")
    assert details.intended_use == read_details(None).intended_use


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("licence: mit", "licence is not a key of a card; did you mean license?"),
        ("datasets: [{title: x, source: [y]}]", "source is not a key of a card; did you mean sources?"),
        ("datasets: [{sources: [y]}]", r"datasets\[0\]\.title has no value"),
        ("languages: [Finnish]", "languages has 'Finnish', which the Hub does not accept; write it like fi or en"),
        ("license: Apache 2.0", "license has 'Apache 2.0', which the Hub does not accept"),
        ("license: other", "license=other needs license_name"),
        ("hub_datasets: ['a b']", "hub_datasets has 'a b'"),
        ("title: [", "is not YAML"),
        ("- title", "is not a card"),
        ("tags: finnish", "tags=finnish is not a list"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_details(str(tmp_path / "mine.yaml"))


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="--card poro_43b is neither a file nor one of default or poro_34b"):
        read_details("poro_43b")
