"""A hub for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub.server import Hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as running:
        yield running
