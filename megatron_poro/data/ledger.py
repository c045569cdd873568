"""The account of a dataset in the making: what it is made of, how far it has come, and what became of each record.

The ledger writes it into the journal of the partial dataset from time to time, takes it up from there when a command is
given again, and ends it as the manifest.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_poro import logs
from megatron_poro.data.documents import CorpusFile
from megatron_poro.data.indexed_format import idx_path, token_type
from megatron_poro.data.indexed_writer import refuse_existing
from megatron_poro.data.manifest import (
    FileRecord,
    Manifest,
    ShardRecord,
    file_record,
    manifest_path,
    read_manifest,
    sha256_of,
    update_from_file,
)
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.data.partial import PartialDataset
from megatron_poro.data.workers import EncodedChunk, Task
from megatron_poro.tokenizer.tokenizer import Tokenizer

CHUNKS_PER_RECORD = 64
"""Chunks between two lines of the journal: what a kill can cost at most."""

MALFORMED_SHOWN = 100
"""Malformed records of a file that the manifest names; all of them are counted."""

_log = logs.get_logger(__name__)


@dataclass(frozen=True)
class TokenizingProgress:
    """What has been written so far, in this and in earlier attempts.

    Attributes:
        documents, tokens: in the dataset.
        empty_documents: texts without a token.
        dropped: records that were left out, malformed ones included.
        source_bytes: of the source files as they are on disk, roughly.
        all_source_bytes: what that will be at the end.
        resumed_tokens: tokens that an earlier attempt had written.
    """

    documents: int
    tokens: int
    empty_documents: int
    dropped: int
    source_bytes: int
    all_source_bytes: int
    resumed_tokens: int


@dataclass(frozen=True)
class Part:
    """What of a corpus file belongs to this dataset: the records that begin in ``begin <= offset < end``."""

    file: CorpusFile
    size: int
    modified_ns: int
    begin: int
    end: int

    @property
    def identity(self) -> list[Any]:
        """Equal if the same records are read, in the same way."""
        return [str(self.file.path), self.file.reader.name, self.size, self.modified_ns, self.begin, self.end]


@dataclass(frozen=True)
class Job:
    """What is to be made, of what."""

    output: Path
    tokenizer: Tokenizer
    parts: list[Part]
    shard: ShardRecord | None
    chunk_bytes: int

    @property
    def header(self) -> dict[str, Any]:
        """First line of the journal: work of another tokenizer or division of the corpus is not gone on with."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "end": self.tokenizer.eos_id,
            "chunk_bytes": self.chunk_bytes,
            "shard": None if self.shard is None else asdict(self.shard),
        }

    def finished_before(self, *, overwrite: bool) -> DatasetMetadata | None:
        """The facts of the dataset if an earlier call has made it of the same files.

        Raises:
            DataError: if another dataset has the name, and ``overwrite`` is off.
        """
        if overwrite or not idx_path(self.output).exists():
            return None
        manifest = read_manifest(self.output)
        if manifest is None or not self._made(manifest):
            refuse_existing(self.output, overwrite=False)
        assert manifest is not None, "refuse_existing raises, since the .idx exists"
        return manifest.summary()

    def _made(self, manifest: Manifest) -> bool:
        """Whether a manifest is that of this job, and no file was written to after it."""
        written = manifest_path(self.output).stat().st_mtime_ns
        here = [(str(part.file.path), part.file.reader.name, part.size, part.begin > 0) for part in self.parts]
        there = [(record.path, record.reader, record.source_bytes, record.continues) for record in manifest.files]
        return (
            manifest.tokenizer == self.tokenizer.fingerprint
            and manifest.shard == self.shard
            and here == there
            and all(part.modified_ns <= written for part in self.parts)
        )


@dataclass
class _Tally:
    """The account of the file being read."""

    documents: int = 0
    tokens: int = 0
    empty_documents: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    malformed: list[str] = field(default_factory=list)

    def add(self, encoded: EncodedChunk) -> None:
        """Counts one chunk."""
        self.documents += len(encoded.sizes)
        self.tokens += int(encoded.sizes.sum(dtype=np.int64))
        self.empty_documents += encoded.empty
        for reason, count in encoded.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.malformed.extend(encoded.malformed[: MALFORMED_SHOWN - len(self.malformed)])


class Ledger:
    """Keeps the account of a dataset in the making: where the corpus has been read to, and what became of it."""

    def __init__(self, dataset: PartialDataset, job: Job) -> None:
        self._dataset, self._job = dataset, job
        self._records: list[FileRecord] = []
        self._unsaved: list[FileRecord] = []
        self._file = self._chunks = self._chunks_unsaved = self._tokens = 0
        self._largest = -1
        self._tally, self._digest = _Tally(), hashlib.sha256()
        self._go_on()
        self._resumed_tokens = self._tokens
        self._all_bytes = sum(part.end - part.begin for part in job.parts)
        self._bytes_before = sum(part.end - part.begin for part in job.parts[: self._file])
        self._empty_before = sum(record.empty_documents for record in self._records)
        self._dropped_before = sum(sum(record.dropped.values()) for record in self._records)

    def tasks_left(self) -> Iterator[Task]:
        """The chunks that are not in the dataset yet."""
        for number in range(self._file, len(self._job.parts)):
            part = self._job.parts[number]
            skipped = self._chunks if number == self._file else 0
            chunks = part.file.reader.chunks(
                part.file.path, chunk_bytes=self._job.chunk_bytes, begin=part.begin, end=part.end
            )
            for position, chunk in enumerate(chunks):
                if position >= skipped:
                    yield Task(number, position, part.file.reader, chunk)

    def add(self, task: Task, encoded: EncodedChunk) -> None:
        """Takes in the next chunk."""
        while self._file < task.file:
            self._close_file()
        self._dataset.append(encoded.tokens, encoded.sizes)
        self._digest.update(encoded.tokens)
        self._tally.add(encoded)
        self._tokens += int(encoded.sizes.sum(dtype=np.int64))
        self._largest = max(self._largest, encoded.max_token_id)
        self._chunks = task.chunk_number + 1
        for problem in encoded.malformed:
            _log.warning(f"left out: {problem}")
        self._chunks_unsaved += 1
        if self._chunks_unsaved >= CHUNKS_PER_RECORD:
            self._save()

    def finish(self) -> None:
        """Closes the accounts of all files."""
        while self._file < len(self._job.parts):
            self._close_file()

    def publish(self) -> DatasetMetadata:
        """Gives the dataset its name."""
        index = self._dataset.write_idx()
        manifest = Manifest(
            tokenizer=self._job.tokenizer.fingerprint,
            vocab_size=self._job.tokenizer.vocab_size,
            token_bytes=token_type(self._job.tokenizer.vocab_size).itemsize,
            max_token_id=self._largest,
            idx_sha256=sha256_of(index),
            files=tuple(self._records),
            shard=self._job.shard,
        )
        metadata = manifest.summary()
        self._dataset.publish(metadata=metadata, manifest=manifest)
        return metadata

    def progress(self, file_offset: int) -> TokenizingProgress:
        """How far it has come; ``file_offset`` is where in the file being read."""
        part = self._job.parts[self._file]
        return TokenizingProgress(
            documents=self._dataset.documents,
            tokens=self._tokens,
            empty_documents=self._empty_before + self._tally.empty_documents,
            dropped=self._dropped_before + sum(self._tally.dropped.values()),
            source_bytes=self._bytes_before + max(0, min(file_offset, part.end) - part.begin),
            all_source_bytes=self._all_bytes,
            resumed_tokens=self._resumed_tokens,
        )

    def _close_file(self) -> None:
        part = self._job.parts[self._file]
        record = FileRecord(
            path=str(part.file.path),
            source_bytes=part.size,
            reader=part.file.reader.name,
            documents=self._tally.documents,
            tokens=self._tally.tokens,
            empty_documents=self._tally.empty_documents,
            dropped=dict(sorted(self._tally.dropped.items())),
            malformed=tuple(self._tally.malformed),
            sha256=self._digest.hexdigest(),
            continues=part.begin > 0,
        )
        self._records.append(record)
        self._unsaved.append(record)
        self._bytes_before += part.end - part.begin
        self._empty_before += record.empty_documents
        self._dropped_before += sum(record.dropped.values())
        self._file += 1
        self._chunks = 0
        self._tally, self._digest = _Tally(), hashlib.sha256()

    def _save(self) -> None:
        first = self._file - len(self._unsaved)
        self._dataset.record(
            {
                "file": self._file,
                "chunks": self._chunks,
                "tokens": self._tokens,
                "max_token_id": self._largest,
                "records": [asdict(record) for record in self._unsaved],
                "tally": asdict(self._tally),
                "parts": [part.identity for part in self._job.parts[first : self._file + 1]],
            }
        )
        self._unsaved, self._chunks_unsaved = [], 0

    def _go_on(self) -> None:
        """Takes up what the journal says was done, as far as the files are still those that it was done with."""
        header, entries = self._job.header, self._dataset.journal()
        valid: list[dict[str, Any]] = []
        for entry in entries[1:] if entries and entries[0] == header else ():
            first = entry["file"] - len(entry["records"])
            if entry["parts"] != [part.identity for part in self._job.parts[first : entry["file"] + 1]]:
                break
            valid.append(entry)
        self._dataset.take_up(valid, header)
        if not valid:
            return
        last = valid[-1]
        self._records = [file_record(record) for entry in valid for record in entry["records"]]
        self._file, self._chunks, self._tokens = last["file"], last["chunks"], last["tokens"]
        self._largest, self._tally = last["max_token_id"], _Tally(**last["tally"])
        itemsize = token_type(self._job.tokenizer.vocab_size).itemsize
        begin, end = self._tokens - self._tally.tokens, self._tokens
        update_from_file(self._digest, self._dataset.tokens_path, begin=begin * itemsize, end=end * itemsize)
