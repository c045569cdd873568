"""Writes an indexed dataset document by document; it appears whole when it is committed, or not at all."""

from array import array
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_poro.data.durable import DurableFile, refusals_as_data_errors
from megatron_poro.data.indexed_format import IndexPart, bin_path, idx_path, token_type, write_index
from megatron_poro.data.manifest import manifest_path
from megatron_poro.data.metadata import DatasetMetadata, metadata_path
from megatron_poro.errors import DataError


class IndexedWriter:
    """Appends documents to a new dataset; a context manager that commits, or discards when the block raises.

    Memory: 4 bytes per document until the commit.

    Raises:
        DataError: if the dataset exists and ``overwrite`` is off, an id is outside the vocabulary, or the disk refuses.
    """

    def __init__(self, prefix: Path, *, vocab_size: int, overwrite: bool = False) -> None:
        refuse_existing(prefix, overwrite=overwrite)
        self.prefix = prefix
        self.vocab_size = vocab_size
        self.token_type = token_type(vocab_size)
        self.num_tokens = 0
        self.max_token_id = -1
        self._sizes = array("i")
        self._tokens = DurableFile(bin_path(prefix))
        self._committed = False

    @property
    def num_documents(self) -> int:
        """Documents appended so far."""
        return len(self._sizes)

    def append(self, tokens: ArrayLike) -> None:
        """Appends one document: its ids, ``[length]``."""
        ids = np.asarray(tokens)
        self.append_many(ids, np.array([len(ids)], dtype=np.int32))

    def append_many(self, tokens: NDArray[Any], sizes: NDArray[np.int32]) -> None:
        """Appends several documents given as one run of ids and the length of each."""
        assert len(tokens) == int(sizes.sum(dtype=np.int64)), "sizes must add up to the ids given"
        if len(tokens):
            least, largest = int(tokens.min()), int(tokens.max())
            if least < 0 or largest >= self.vocab_size:
                raise DataError(
                    f"token id {least if least < 0 else largest} does not fit the vocabulary of {self.vocab_size} ids "
                    f"that {self.prefix} is written for: use the tokenizer that made the ids."
                )
            self.max_token_id = max(self.max_token_id, largest)
        self._tokens.write(tokens.astype(self.token_type).tobytes())
        self._sizes.frombytes(sizes.astype(np.int32).tobytes())
        self.num_tokens += len(tokens)

    def commit(self, metadata: DatasetMetadata | None = None) -> None:
        """Makes the dataset appear: .bin, side file, and last the .idx, without which no reader accepts the others."""
        sizes = np.frombuffer(self._sizes, dtype=np.int32)
        ends = np.arange(1, len(sizes) + 1, dtype=np.int64)
        index = DurableFile(idx_path(self.prefix))
        try:
            write_index(index, self.token_type, [IndexPart(sizes, ends)])
            publish_dataset(self.prefix, tokens=self._tokens, index=index, metadata=metadata)
        finally:
            index.discard()
        self._committed = True

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._committed:
                self.commit()
        finally:
            self._tokens.discard()


def refuse_existing(prefix: Path, *, overwrite: bool) -> None:
    """Keeps a command from replacing a dataset unasked.

    Raises:
        DataError: if ``prefix`` has an .idx and ``overwrite`` is off.
    """
    if idx_path(prefix).exists() and not overwrite:
        raise DataError(f"{idx_path(prefix)} exists. Choose another output prefix, or add --overwrite to replace it.")


def publish_dataset(prefix: Path, *, tokens: DurableFile, index: DurableFile, metadata: DatasetMetadata | None) -> None:
    """Names the files of a dataset in an order in which no reader ever sees a wrong pair.

    An .idx that is replaced goes first: from then until the new one is there, the dataset does not exist.
    """
    sides: list[DurableFile] = []
    try:
        if metadata is not None:
            sides.append(DurableFile(metadata_path(prefix)))
            sides[0].write(metadata.to_json().encode())
        for file in (tokens, *sides, index):
            file.finish()
        with refusals_as_data_errors(prefix):
            idx_path(prefix).unlink(missing_ok=True)
            metadata_path(prefix).unlink(missing_ok=True)
            manifest_path(prefix).unlink(missing_ok=True)
        for file in (tokens, *sides, index):
            file.publish()
    finally:
        for side in sides:
            side.discard()
