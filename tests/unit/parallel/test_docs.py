"""The worked example of docs/parallelism.md is run as written."""

import doctest
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_worked_example_is_true() -> None:
    outcome = doctest.testfile(str(DOCS / "parallelism.md"), module_relative=False)
    assert outcome.attempted >= 7
    assert outcome.failed == 0
