"""What a dataset was made of: a small JSON file beside the .bin and .idx that Megatron ignores.

It names the tokenizer, so that a corpus made with another one is refused when training starts rather than noticed in
the loss, and the largest token id, so that the vocabulary check need not read terabytes.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from megatron_poro.errors import DataError


@dataclass(frozen=True, kw_only=True)
class DatasetMetadata:
    """Facts of one indexed dataset.

    Attributes:
        tokenizer: fingerprint of the tokenizer.
        vocab_size: ids of that tokenizer.
        documents: documents in the dataset.
        tokens: tokens in it, one end-of-document token per document included.
        max_token_id: largest id in it; -1 for a dataset without tokens.
        empty_documents: documents of the source files that held no token and were left out.
        inputs: the source files, in order, as they were named to the command.
    """

    tokenizer: str
    vocab_size: int
    documents: int
    tokens: int
    max_token_id: int
    empty_documents: int
    inputs: tuple[str, ...]

    def to_json(self) -> str:
        """Text of the side file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def metadata_path(prefix: Path) -> Path:
    """The side file of a dataset."""
    return Path(f"{prefix}.meta.json")


def read_metadata(prefix: Path) -> DatasetMetadata | None:
    """Facts of the dataset ``prefix``, or None where it has no side file (datasets made by other programs).

    Raises:
        DataError: if the side file is damaged.
    """
    path = metadata_path(prefix)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = {field.name: content[field.name] for field in fields(DatasetMetadata)}
        return DatasetMetadata(**{**values, "inputs": tuple(values["inputs"])})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}). Delete it to use the dataset without its checks, "
            "or tokenize again."
        ) from error
