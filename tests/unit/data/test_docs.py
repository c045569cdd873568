import doctest
from pathlib import Path

DATA_PAGE = Path(__file__).parents[3] / "docs" / "data.md"


def test_examples_of_the_data_page_are_true() -> None:
    result = doctest.testfile(str(DATA_PAGE), module_relative=False)
    assert result.failed == 0
    assert result.attempted >= 10
