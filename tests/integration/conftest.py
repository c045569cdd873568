"""The corpora of the toy run, made once; and logging as it was before each test."""

import logging
from collections.abc import Iterator

import pytest

from tests.integration.toy import ToyCorpora


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> ToyCorpora:
    return ToyCorpora.make(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(autouse=True)
def _logging_put_back() -> Iterator[None]:
    """A command sets up logging on the stderr of its test, which is closed when the next test logs."""
    logger = logging.getLogger("megatron_poro")
    before = (logger.handlers, logger.propagate, logger.level)
    yield
    logger.handlers, logger.propagate, logger.level = before
