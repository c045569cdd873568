"""The examples in docs and docstrings are true."""

import doctest
from pathlib import Path

from megatron_poro.checkpoint import fragment

PAGE = Path(__file__).parents[3] / "docs" / "checkpoints.md"


def test_the_examples_of_the_page_run() -> None:
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted >= 20
    assert results.failed == 0


def test_the_examples_of_the_docstrings_run() -> None:
    results = doctest.testmod(fragment)
    assert results.attempted == 1
    assert results.failed == 0
