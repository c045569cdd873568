"""Joins indexed datasets into one, in the order given: corpora, or the shards of a corpus that was made in parts.

The shards of one corpus join to the same bytes, side files included, as the corpus made in one go; one that is missing
or out of turn is refused. Checksums in the manifests are compared with what is copied.
"""

import glob
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.indexed_format import IndexPart, bin_path
from megatron_poro.data.indexed_writer import refuse_existing
from megatron_poro.data.ledger import MALFORMED_SHOWN
from megatron_poro.data.manifest import FileRecord, Manifest, manifest_path, read_manifest, sha256_of
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.data.partial import PartialDataset
from megatron_poro.errors import DataError

_COPY_BYTES = 1 << 22


def merge_datasets(prefixes: Sequence[Path], output: Path, *, overwrite: bool = False) -> IndexedDataset:
    """Writes ``output`` as the documents of all ``prefixes`` one after the other, and opens it.

    The merged dataset has each kind of side file that every input has.

    Raises:
        DataError: if an input is missing or damaged, inputs differ in token type or tokenizer, shards are missing or
            out of order, or ``output`` exists or is one of the inputs.
    """
    if not prefixes:
        raise DataError(f"no shards were named to merge into {output}.")
    if output.resolve() in [prefix.resolve() for prefix in prefixes]:
        raise DataError(f"output {output} is also one of the shards; choose another prefix.")
    refuse_existing(output, overwrite=overwrite)
    shards = [IndexedDataset(prefix) for prefix in prefixes]
    for shard in shards:
        shard.check_layout()
        if shard.token_type != shards[0].token_type:
            raise DataError(
                f"{shards[0].prefix} stores tokens as {shards[0].token_type}, {shard.prefix} as {shard.token_type}: "
                "shards of one dataset must agree. Tokenize one of them again."
            )
    metadata = _merged_metadata(shards)
    manifests = _manifests(shards)
    with PartialDataset(output, shards[0].token_type) as dataset:
        dataset.take_up([], {"merged": [str(prefix) for prefix in prefixes]})
        accounts = _Accounts()
        for position, shard in enumerate(shards):
            if manifests is None:
                _copy(dataset, shard, 0, shard.num_tokens)
            else:
                accounts.copy(dataset, shard, manifests[position])
        index = dataset.write_idx([IndexPart(shard.sizes, shard.document_ends) for shard in shards])
        manifest = None
        if manifests is not None and metadata is not None:
            manifest = replace(
                manifests[0],
                max_token_id=metadata.max_token_id,
                idx_sha256=sha256_of(index),
                files=tuple(accounts.records),
                shard=None,
            )
            metadata = manifest.summary()
        dataset.publish(metadata=metadata, manifest=manifest)
    return IndexedDataset(output)


def _copy(dataset: PartialDataset, shard: IndexedDataset, begin: int, end: int, *digests: "hashlib._Hash") -> None:
    """Appends the tokens of a shard from ``begin`` to ``end``, and shows them to the digests."""
    itemsize = shard.token_type.itemsize
    left = (end - begin) * itemsize
    with open(bin_path(shard.prefix), "rb") as file:
        file.seek(begin * itemsize)
        while left > 0 and (data := file.read(min(_COPY_BYTES, left))):
            dataset.append(data, np.empty(0, np.int32))
            for digest in digests:
                digest.update(data)
            left -= len(data)
    if left:
        raise DataError(f"{bin_path(shard.prefix)} has become shorter while it was copied.")


class _Accounts:
    """The records of the source files of all shards; a file whose documents lie in several shards has one."""

    def __init__(self) -> None:
        self.records: list[FileRecord] = []
        self._digest = hashlib.sha256()

    def copy(self, dataset: PartialDataset, shard: IndexedDataset, manifest: Manifest) -> None:
        """Appends a shard, file by file, and compares its checksums.

        Raises:
            DataError: if its tokens are not those that were written.
        """
        offset = 0
        for record in manifest.files:
            own = hashlib.sha256()
            digests = [own, self._digest]
            if not record.continues:
                self._digest = own
                digests = [own]
            _copy(dataset, shard, offset, offset + record.tokens, *digests)
            if own.hexdigest() != record.sha256:
                raise DataError(
                    f"{bin_path(shard.prefix)} is damaged between bytes {offset * shard.token_type.itemsize} and "
                    f"{(offset + record.tokens) * shard.token_type.itemsize}, the documents of {record.path}: copy or "
                    "make this shard again."
                )
            offset += record.tokens
            if record.continues:
                record = _joined(self.records.pop(), record, self._digest.hexdigest())
            self.records.append(record)


def _joined(first: FileRecord, second: FileRecord, sha256: str) -> FileRecord:
    return replace(
        first,
        documents=first.documents + second.documents,
        tokens=first.tokens + second.tokens,
        empty_documents=first.empty_documents + second.empty_documents,
        dropped=dict(sorted((Counter(first.dropped) + Counter(second.dropped)).items())),
        malformed=(*first.malformed, *second.malformed)[:MALFORMED_SHOWN],
        sha256=sha256,
    )


def _manifests(shards: Sequence[IndexedDataset]) -> list[Manifest] | None:
    """The manifest of each input, or None if one has none.

    Raises:
        DataError: if one is not its dataset's, or shards of a corpus are missing or out of turn.
    """
    found = [read_manifest(shard.prefix) for shard in shards]
    manifests = [manifest for manifest in found if manifest is not None]
    for shard, manifest in zip(shards, found, strict=True):
        if manifest is not None and (manifest.documents, manifest.tokens) != (shard.num_documents, shard.num_tokens):
            raise DataError(
                f"{manifest_path(shard.prefix)} describes {manifest.documents} documents and {manifest.tokens} tokens, "
                f"but the dataset has {shard.num_documents} and {shard.num_tokens}: copy the right one."
            )
    places = [None if manifest is None else manifest.shard for manifest in found]
    of_one_corpus = [place for place in places if place is not None]
    if of_one_corpus:
        wanted = [replace(of_one_corpus[0], index=index) for index in range(of_one_corpus[0].of)]
        if places != wanted:
            has = ", ".join(
                f"{shard.prefix} ({'no shard' if place is None else f'{place.index} of {place.of}'})"
                for shard, place in zip(shards, places, strict=True)
            )
            raise DataError(
                f"these are not all shards 0 to {len(wanted) - 1} of one corpus, in order: {has}. A corpus that was "
                "made in shards is joined whole, and its files must not have changed between them."
            )
    return manifests if len(manifests) == len(found) else None


def find_shards(output: Path) -> list[Path]:
    """The prefixes of the shards of the dataset ``output`` that are on disk, in order.

    Raises:
        DataError: if there are none.
    """
    found = sorted(output.parent.glob(f"{glob.escape(output.name)}.shard-*-of-*.idx"))
    if not found:
        raise DataError(f"no shards of {output} are there; `poro data tokenize --shard I/N` makes them.")
    return [path.with_suffix("") for path in found]


def _merged_metadata(shards: Sequence[IndexedDataset]) -> DatasetMetadata | None:
    parts: list[DatasetMetadata] = []
    for shard in shards:
        part = shard.metadata()
        if part is None:
            return None
        if parts and part.tokenizer != parts[0].tokenizer:
            raise DataError(
                f"{shards[0].prefix} was made with tokenizer {parts[0].tokenizer}, {shard.prefix} with "
                f"{part.tokenizer}: one dataset needs one tokenizer. Tokenize one of them again."
            )
        parts.append(part)
    return DatasetMetadata(
        tokenizer=parts[0].tokenizer,
        vocab_size=parts[0].vocab_size,
        documents=sum(part.documents for part in parts),
        tokens=sum(part.tokens for part in parts),
        max_token_id=max(part.max_token_id for part in parts),
        empty_documents=sum(part.empty_documents for part in parts),
        inputs=tuple(name for part in parts for name in part.inputs),
    )
