"""Which steps of a run are looked at closely, to see what their time is spent on."""

import re
from dataclasses import dataclass

from megatron_poro.errors import ConfigError


@dataclass(kw_only=True)
class ProfileConfig:
    """Steps whose time is split into parts and whose every operation is recorded, in the run's folder profile/."""

    steps: str | None = None
    """Steps to profile as FIRST:LAST, both included and counted from 1, as in 10:12 (in a file with quotes: "10:12");
    null profiles none. Those steps are slower, and change nothing else: losses and weights keep their bits."""


def profiled_steps(text: str | None) -> range:
    """The steps that ``profile.steps`` names; empty for none.

    Raises:
        ConfigError: if it names no steps.
    """
    if text is None:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    steps = range(int(match[1]), int(match[2]) + 1) if match else range(0)
    if not steps or steps[0] < 1:
        raise ConfigError(
            f"profile.steps={text} names no steps; write FIRST:LAST, both included and counted from 1, in a file with "
            'quotes: "10:12".'
        )
    return steps
