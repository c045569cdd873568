"""pyarrow, imported only when it is needed: parquet, and the numbering of equal pieces of text."""

import importlib
from typing import Any

from megatron_poro.errors import DataError


def arrow(name: str) -> Any:
    """The module ``name`` of pyarrow, which has no types.

    Raises:
        DataError: if pyarrow is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError("reading parquet and encoding text need `pip install pyarrow`.") from error
