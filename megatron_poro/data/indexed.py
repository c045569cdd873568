"""Reads an indexed dataset through the page cache: opening one costs nothing per document, reading copies nothing.

Notable: nothing in the files is believed. Opening compares the counts with the lengths of both files before anything is
mapped by them, reading a document compares its place with its neighbour's, and ``check_layout`` does that for all of
them; a damaged file is refused by its name and the byte that gave it away, whatever the damage.

Files of Megatron-LM, Megatron-DeepSpeed and GPT-NeoX are read as well as our own (see ``indexed_format``).
"""

import hashlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.indexed_format import (
    HEADER,
    TYPE_OFFSET,
    Index,
    bin_path,
    damage,
    idx_path,
    read_header,
    token_type,
)
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
        index = open_index(self.prefix)
        self._index = index
        self.token_type = index.header.token_type
        self.num_documents = index.header.num_sequences
        self.num_tokens = index.num_tokens
        self.sizes = index.sizes
        self.document_ends = index.document_entries[1:]
        tokens = _map(tokens_path)
        needed = self.num_tokens * self.token_type.itemsize
        if len(tokens) != needed:
            raise DataError(
                f"{tokens_path} has {len(tokens)} bytes, but {index_path.name} describes {needed} (its last document, "
                f"byte {index.begin_offset(max(0, self.num_documents - 1))}): the pair does not belong together or a "
                "copy was cut short. Copy or make both again."
            )
        self._tokens: NDArray[Any] = np.frombuffer(tokens, self.token_type)
        self.digest = index.digest

    def __len__(self) -> int:
        return self.num_documents

    def document(self, index: int) -> NDArray[Any]:
        """Token ids of one document, ``[length]`` of ``token_type``, a read-only view of the file.

        Raises:
            DataError: if the index says that it ends elsewhere than where the next one begins.
        """
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.prefix}, which has {self.num_documents}")
        begins, itemsize = self._index.begins, self.token_type.itemsize
        begin, size = int(begins[index]), int(self.sizes[index])
        next_begin = int(begins[index + 1]) if index + 1 < self.num_documents else self.num_tokens * itemsize
        # together with the lengths checked before, no slice can leave the file or be silently shorter
        if begin + size * itemsize != next_begin or size < 0 or begin < 0 or begin % itemsize:
            raise self._index.misplaced(index)
        begin //= itemsize
        tokens = self._tokens[begin : begin + size]
        if len(tokens) != size:
            raise self._index.misplaced(index)
        return tokens

    def max_token_id(self, limit_tokens: int | None = None) -> int:
        """Largest id of the dataset; -1 if it has no tokens.

        Args:
            limit_tokens: look at no more than about so many tokens, in blocks spread evenly over the file; None
                looks at all of them.

        Raises:
            DataError: if an id is negative.
        """
        blocks = -(-self.num_tokens // _SCAN_TOKENS)
        wanted = blocks if limit_tokens is None else min(blocks, max(1, limit_tokens // _SCAN_TOKENS))
        chosen = np.unique(np.linspace(0, blocks - 1, wanted).astype(np.int64)) if blocks else np.empty(0, np.int64)
        found = -1
        for block in chosen:
            begin = int(block) * _SCAN_TOKENS
            tokens = self._tokens[begin : begin + _SCAN_TOKENS]
            found = max(found, int(tokens.max()))
            if self.token_type.kind == "i" and int(tokens.min()) < 0:
                offset = (begin + int(tokens.argmin())) * self.token_type.itemsize
                raise damage(
                    bin_path(self.prefix), offset, f"token id {tokens.min()} is negative as {self.token_type.name}"
                )
        return found

    def metadata(self) -> DatasetMetadata | None:
        """What the side file says the dataset was made of; None where there is none.

        Raises:
            DataError: if the side file is damaged, or counts other documents and tokens than the dataset has, or its
                tokenizer's ids are stored in another type than the dataset's.
        """
        metadata = read_metadata(self.prefix)
        if metadata is not None and (metadata.documents, metadata.tokens) != (self.num_documents, self.num_tokens):
            raise DataError(
                f"{metadata_path(self.prefix)} describes {metadata.documents} documents and {metadata.tokens} tokens, "
                f"but {idx_path(self.prefix).name} has {self.num_documents} and {self.num_tokens}: it belongs to "
                "another dataset. Copy the right one, or delete it."
            )
        if metadata is not None and token_type(metadata.vocab_size) != self.token_type:
            raise damage(
                idx_path(self.prefix),
                TYPE_OFFSET,
                f"its tokens are said to be {self.token_type.name}, but {metadata_path(self.prefix).name} speaks of a "
                f"vocabulary of {metadata.vocab_size}, stored as {token_type(metadata.vocab_size).name}",
            )
        return metadata

    def check_layout(self) -> None:
        """Checks the place of every document; opening a dataset only looks at the ends of the index.

        Raises:
            DataError: if a document does not begin where the one before it ends, or the document entries do not count
                the sequences.
        """
        self._index.check()


def open_index(prefix: Path) -> Index:
    """The .idx of a dataset, checked against its own length; needs no .bin.

    Raises:
        DataError: if it is missing, is not of the format, or is shorter or longer than its header says.
    """
    path = idx_path(prefix)
    if not path.is_file():
        raise DataError(f"{path} does not exist. Make it with `poro data tokenize`, or correct the path.")
    content = _map(path)
    header = read_header(path, bytes(content[: HEADER.size]))
    if len(content) != header.index_bytes:
        raise DataError(
            f"{path} has {len(content)} bytes, but its header (byte 18: {header.num_sequences} sequences, byte 26: "
            f"{header.num_document_entries} document entries) needs {header.index_bytes}: copy or make it again."
        )
    ends = bytes(content[:_DIGEST_BYTES]) + bytes(content[-_DIGEST_BYTES:])
    return Index(path, header, content, digest=hashlib.sha256(ends).hexdigest()[:16])


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
