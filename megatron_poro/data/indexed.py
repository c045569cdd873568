"""Reads an indexed dataset through the page cache: opening one costs nothing per document, reading copies nothing.

Files of Megatron-LM, Megatron-DeepSpeed and GPT-NeoX are read as well as our own (see ``indexed_format``).
"""

import hashlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.indexed_format import HEADER, bin_path, idx_path, read_header
from megatron_poro.data.metadata import DatasetMetadata, metadata_path, read_metadata
from megatron_poro.errors import DataError

_SCAN_TOKENS = 1 << 20
_DIGEST_BYTES = 1 << 16


class IndexedDataset:
    """The documents of one ``.bin``/``.idx`` pair.

    Attributes:
        prefix: path without ``.bin`` / ``.idx``.
        token_type: type of the ids in the .bin.
        sizes: int32 ``[num_documents]``, tokens of each document; memory-mapped, read-only.
        document_ends: int64, the format's document entries without the leading 0; memory-mapped, read-only.
        num_documents: number of documents.
        num_tokens: tokens in all documents together.
        digest: short fingerprint of the pair's layout: counts, and both ends of the .idx.

    Raises:
        DataError: if a file is missing, is not of the format, or is shorter or longer than the other one says.
    """

    def __init__(self, prefix: Path | str) -> None:
        self.prefix = Path(prefix)
        index_path, tokens_path = idx_path(self.prefix), bin_path(self.prefix)
        for path in (index_path, tokens_path):
            if not path.is_file():
                raise DataError(
                    f"{path} does not exist; dataset {self.prefix} needs {index_path.name} and {tokens_path.name}. "
                    "Make them with `poro data tokenize`, or correct the path."
                )
        index = _map(index_path)
        header = read_header(index_path, bytes(index[: HEADER.size]))
        if len(index) != header.index_bytes:
            raise DataError(
                f"{index_path} has {len(index)} bytes, but its header ({header.num_sequences} sequences, "
                f"{header.num_document_entries} document entries) needs {header.index_bytes}: copy or make it again."
            )
        count, entries = header.num_sequences, header.num_document_entries
        self.token_type = header.token_type
        self.num_documents = count
        self.sizes = np.frombuffer(index, "<i4", count, HEADER.size)
        self._begins = np.frombuffer(index, "<i8", count, HEADER.size + 4 * count)
        self.document_ends = np.frombuffer(index, "<i8", entries, HEADER.size + 12 * count)[1:]
        tokens = _map(tokens_path)
        itemsize = self.token_type.itemsize
        needed = int(self._begins[-1]) + int(self.sizes[-1]) * itemsize if count else 0
        if len(tokens) != needed:
            raise DataError(
                f"{tokens_path} has {len(tokens)} bytes, but {index_path.name} describes {needed}: the pair does not "
                "belong together or a copy was cut short. Copy or make both again."
            )
        self._tokens: NDArray[Any] = np.frombuffer(tokens, self.token_type)
        self.num_tokens = len(self._tokens)
        ends = bytes(index[:_DIGEST_BYTES]) + bytes(index[-_DIGEST_BYTES:])
        self.digest = hashlib.sha256(ends).hexdigest()[:16]

    def __len__(self) -> int:
        return self.num_documents

    def document(self, index: int) -> NDArray[Any]:
        """Token ids of one document, ``[length]`` of ``token_type``, a read-only view of the file."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.prefix}, which has {self.num_documents}")
        begin = int(self._begins[index]) // self.token_type.itemsize
        return self._tokens[begin : begin + int(self.sizes[index])]

    def max_token_id(self, limit_tokens: int | None = None) -> int:
        """Largest id of the dataset; -1 if it has no tokens.

        Args:
            limit_tokens: look at no more than about so many tokens, in blocks spread evenly over the file; None
                looks at all of them.
        """
        blocks = -(-self.num_tokens // _SCAN_TOKENS)
        wanted = blocks if limit_tokens is None else min(blocks, max(1, limit_tokens // _SCAN_TOKENS))
        chosen = np.unique(np.linspace(0, blocks - 1, wanted).astype(np.int64)) if blocks else np.empty(0, np.int64)
        found = -1
        for block in chosen:
            begin = int(block) * _SCAN_TOKENS
            found = max(found, int(self._tokens[begin : begin + _SCAN_TOKENS].max()))
        return found

    def metadata(self) -> DatasetMetadata | None:
        """What the side file says the dataset was made of; None where there is none.

        Raises:
            DataError: if the side file is damaged, or counts other documents and tokens than the dataset has.
        """
        metadata = read_metadata(self.prefix)
        if metadata is not None and (metadata.documents, metadata.tokens) != (self.num_documents, self.num_tokens):
            raise DataError(
                f"{metadata_path(self.prefix)} describes {metadata.documents} documents and {metadata.tokens} tokens, "
                f"but {idx_path(self.prefix).name} has {self.num_documents} and {self.num_tokens}: it belongs to "
                "another dataset. Copy the right one, or delete it."
            )
        return metadata

    def check_layout(self) -> None:
        """Reads all sizes and compares their sum with the .bin; opening a dataset only looks at the last one.

        Raises:
            DataError: if they do not add up, or a size is negative.
        """
        total = int(self.sizes.sum(dtype=np.int64))
        least = int(self.sizes.min()) if self.num_documents else 0
        if total != self.num_tokens or least < 0:
            raise DataError(
                f"the sizes in {idx_path(self.prefix)} add up to {total} tokens (least size {least}), but "
                f"{bin_path(self.prefix).name} holds {self.num_tokens}: the index is damaged. Make the dataset again."
            )


def outside_vocabulary(dataset: IndexedDataset, token_id: int, vocab_size: int) -> DataError:
    """The error to raise when a dataset holds an id that a model has no row for."""
    return DataError(
        f"{bin_path(dataset.prefix)} holds token id {token_id}, but model.vocab_size={vocab_size}: the corpus was made "
        "with another tokenizer. Tokenize it again, or correct model.vocab_size."
    )


def _map(path: Path) -> memoryview:
    """The file's bytes, read-only, mapped into memory."""
    with open(path, "rb") as file:
        if path.stat().st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
