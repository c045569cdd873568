"""Which steps are profiled, as they are written."""

import pytest

from megatron_poro.config.load import load_config
from megatron_poro.config.profile import profiled_steps
from megatron_poro.errors import ConfigError


@pytest.mark.parametrize(("text", "steps"), [(None, []), ("10:12", [10, 11, 12]), ("1:1", [1]), ("007:008", [7, 8])])
def test_both_ends_are_included(text: str | None, steps: list[int]) -> None:
    assert list(profiled_steps(text)) == steps


@pytest.mark.parametrize("text", ["", "10", "10:", ":12", "10-12", "12:10", "0:3", "-1:3", "1:2:3", "a:b", "1.5:2"])
def test_what_names_no_steps_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^profile\.steps=.* names no steps; write FIRST:LAST, .*\"10:12\"\.$"):
        profiled_steps(text)


def test_command_line_needs_no_quotes() -> None:
    assert load_config(["experiment=smoke_cpu", "profile.steps=10:12"]).profile.steps == "10:12"
