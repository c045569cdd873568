"""A pytest plugin that switches one guard off: ``GUARD_OFF='free space' pytest -p tests.guards_off.plugin TESTS``."""

import os

import pytest

from tests.guards_off.registry import BY_NAME
from tests.guards_off.switch import switch_off

VARIABLE = "GUARD_OFF"
"""Environment variable with the name of the guard; without it nothing is switched off."""


def pytest_configure(config: pytest.Config) -> None:
    name = os.environ.get(VARIABLE)
    if name is not None:
        switch_off(BY_NAME[name])
