"""Reads a dataset from end to end and names every fault: what was copied, or lay on a disk, is what was written.

Opening a dataset believes nothing either, but looks at what it needs; this reads each byte of both files once. With a
manifest a flipped bit is found and the source file whose documents it is in is named; without one, the layout and the
range of the ids are all that can be proven.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.indexed_format import bin_path, idx_path
from megatron_poro.data.manifest import Manifest, manifest_path, read_manifest, sha256_of
from megatron_poro.data.metadata import metadata_path
from megatron_poro.errors import DataError

_BLOCK_BYTES = 1 << 22
_REMEDY = "Copy it again, or make the dataset again."


@dataclass
class AuditResult:
    """Outcome for one dataset.

    Attributes:
        faults: a sentence for each, with file and offset.
        documents, tokens: counts, as far as the dataset could be opened.
        max_token_id: largest id found; -1 before any was read.
        checksums: whether checksums were compared.
    """

    faults: list[str] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    max_token_id: int = -1
    checksums: bool = False

    @property
    def proven(self) -> str:
        """What was looked at, for a person."""
        how = "layout, ids and checksums" if self.checksums else "layout and ids, no manifest to take checksums from"
        return f"{self.documents:,} documents, {self.tokens:,} tokens, largest id {self.max_token_id:,} ({how})"


def audit_dataset(prefix: Path) -> AuditResult:
    """Looks for faults in the header, the counts, the pointers, the length of the .bin, the ids and the checksums.

    A dataset that cannot be opened has that one fault; otherwise all are collected.
    """
    result = AuditResult()
    try:
        dataset = IndexedDataset(prefix)
    except DataError as error:
        result.faults.append(str(error))
        return result
    result.documents, result.tokens = dataset.num_documents, dataset.num_tokens
    manifest, vocab_size = None, None
    try:
        dataset.check_layout()
    except DataError as error:
        result.faults.append(str(error))
    try:
        metadata = dataset.metadata()
        vocab_size = None if metadata is None else metadata.vocab_size
    except DataError as error:
        metadata = None
        result.faults.append(str(error))
    try:
        manifest = read_manifest(prefix)
    except DataError as error:
        result.faults.append(str(error))
    if manifest is not None:
        vocab_size = manifest.vocab_size
        result.faults.extend(_disagreements(dataset, manifest))
        if metadata is not None and metadata != manifest.summary():
            result.faults.append(
                f"{metadata_path(prefix)} is not the summary of {manifest_path(prefix).name}. {_REMEDY}"
            )
    result.checksums = manifest is not None
    _read_tokens(dataset, manifest, vocab_size, result)
    stated = manifest.max_token_id if manifest is not None else metadata.max_token_id if metadata else None
    if stated is not None and stated != result.max_token_id:
        result.faults.append(
            f"{bin_path(prefix)} holds ids up to {result.max_token_id}, its side file says {stated}. {_REMEDY}"
        )
    return result


def _disagreements(dataset: IndexedDataset, manifest: Manifest) -> Iterator[str]:
    index, tokens = idx_path(dataset.prefix), bin_path(dataset.prefix)
    if (manifest.documents, manifest.tokens) != (dataset.num_documents, dataset.num_tokens):
        yield (
            f"{index} has {dataset.num_documents} documents and {dataset.num_tokens} tokens, "
            f"{manifest_path(dataset.prefix).name} has {manifest.documents} and {manifest.tokens}. {_REMEDY}"
        )
    if manifest.token_bytes != dataset.token_type.itemsize:
        yield (
            f"{index} byte 17: tokens of {dataset.token_type.itemsize} bytes, "
            f"{manifest_path(dataset.prefix).name} says {manifest.token_bytes}. {_REMEDY}"
        )
    if (found := sha256_of(index)) != manifest.idx_sha256:
        yield (
            f"{index} bytes 0 to {index.stat().st_size}: SHA-256 is {found[:16]}..., written was "
            f"{manifest.idx_sha256[:16]}.... {_REMEDY}"
        )
    if manifest.shard is not None and manifest.shard.of > 1:
        return
    if any(record.continues for record in manifest.files):
        yield f"{tokens} begins in the middle of a source file, though it is no shard. {_REMEDY}"


def _read_tokens(
    dataset: IndexedDataset, manifest: Manifest | None, vocab_size: int | None, result: AuditResult
) -> None:
    """One pass over the .bin, source file by source file."""
    path, itemsize = bin_path(dataset.prefix), dataset.token_type.itemsize
    begin = 0
    out_of_range: list[str] = []
    for name, tokens, sha256 in _ranges(dataset, manifest):
        end = begin + tokens * itemsize
        digest = hashlib.sha256()
        for offset, block in _blocks(path, begin, end, dataset.token_type):
            digest.update(block.data)
            result.max_token_id = max(result.max_token_id, int(block.max()))
            fault = _outside(block, vocab_size)
            if fault is not None and not out_of_range:  # the first says where; a damaged file would have millions
                out_of_range.append(
                    f"{path} byte {offset + fault * itemsize}: token id {block[fault]} is outside 0 to "
                    f"{vocab_size - 1 if vocab_size else 'its vocabulary'}. {_REMEDY}"
                )
        if sha256 is not None and digest.hexdigest() != sha256:
            result.faults.append(
                f"{path} bytes {begin} to {end}, the documents of {name}: SHA-256 is {digest.hexdigest()[:16]}..., "
                f"written was {sha256[:16]}.... {_REMEDY}"
            )
        begin = end
    result.faults.extend(out_of_range)


def _ranges(dataset: IndexedDataset, manifest: Manifest | None) -> Iterator[tuple[str, int, str | None]]:
    """Name, tokens and checksum of what lies in the .bin, one after the other."""
    if manifest is None or manifest.tokens != dataset.num_tokens:
        yield str(dataset.prefix), dataset.num_tokens, None
        return
    for record in manifest.files:
        yield record.path, record.tokens, record.sha256


def _blocks(path: Path, begin: int, end: int, stored: np.dtype[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    with open(path, "rb") as file:
        file.seek(begin)
        while begin < end and (data := file.read(min(_BLOCK_BYTES, end - begin))):
            yield begin, np.frombuffer(data, stored)
            begin += len(data)


def _outside(block: NDArray[Any], vocab_size: int | None) -> int | None:
    """Position of the first id that cannot be one."""
    bad = block < 0 if vocab_size is None else (block < 0) | (block >= vocab_size)
    return int(bad.argmax()) if bad.any() else None
