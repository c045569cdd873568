"""Joins indexed datasets into one, in the order given: the shards of a corpus that was tokenized in parts."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from megatron_poro.data.durable import DurableFile, refusals_as_data_errors
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.indexed_format import IndexPart, bin_path, idx_path, write_index
from megatron_poro.data.indexed_writer import publish_dataset, refuse_existing
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.errors import DataError

_COPY_BYTES = 1 << 24


def merge_datasets(prefixes: Sequence[Path], output: Path, *, overwrite: bool = False) -> IndexedDataset:
    """Writes ``output`` as the documents of all ``prefixes`` one after the other, and opens it.

    The merged dataset has a side file if every shard has one.

    Raises:
        DataError: if a shard is missing or damaged, shards differ in token type or tokenizer, or ``output`` exists or
            is one of them.
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
    tokens, index = DurableFile(bin_path(output)), DurableFile(idx_path(output))
    try:
        for shard in shards:
            with open(bin_path(shard.prefix), "rb") as source, refusals_as_data_errors(tokens.path):
                shutil.copyfileobj(source, tokens.file, _COPY_BYTES)
        write_index(index, shards[0].token_type, [IndexPart(shard.sizes, shard.document_ends) for shard in shards])
        publish_dataset(output, tokens=tokens, index=index, metadata=metadata)
    finally:
        tokens.discard()
        index.discard()
    return IndexedDataset(output)


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
