"""docs/configuration.md is the schema, and the schema is documented."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_poro.config.fields import schema_fields, walk
from megatron_poro.config.paths import CARDS_FOLDER, config_dir
from megatron_poro.config.reference import render_reference
from megatron_poro.config.run import TrainConfig


@dataclass
class Odd:
    """A schema that no config can fill."""

    table: dict[str, int]


PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def test_the_page_is_fresh() -> None:
    fresh = render_reference(config_dir())
    assert PAGE.read_text(encoding="utf-8") == fresh, "run: poro config reference > docs/configuration.md"


@pytest.mark.parametrize("key", [key for key, field in walk() if "." in key])
def test_every_key_is_documented_on_the_page(key: str) -> None:
    field = dict(walk())[key]
    assert len(field.documentation) > 15, f"{key} has no docstring"
    assert field.documentation.endswith((".", ")")), f"{key}: a docstring ends like a sentence"
    assert f"| `{key}` |" in PAGE.read_text(encoding="utf-8")


def test_the_page_lists_every_packaged_file() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for path in config_dir().glob("*/*.yaml"):
        if path.parent.name == CARDS_FOLDER:
            continue
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{path.parent.name}` |")]
        assert f"`{path.stem}`" in row


def test_a_cell_cannot_break_the_table() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = {line.replace("\\|", "").count("|") for line in rows}
    assert cells == {3, 5}, "groups have two columns, keys four"


def test_a_field_type_that_a_config_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="a config field cannot be"):
        schema_fields(Odd)


def test_counts_and_lists_are_told_apart() -> None:
    fields = dict(walk(TrainConfig))
    assert fields["schedule.decay_tokens"].type.is_count
    assert fields["schedule.decay_tokens"].type.is_optional
    assert fields["data.train"].type.is_list
    assert not fields["parallel.tensor"].type.is_count
