"""Turns corpus files into an indexed dataset; the result does not depend on the number of workers or on interruptions.

One process reads chunks and writes what comes back in the order of the corpus, others parse and encode. The dataset
grows in ``PREFIX.partial``, whose journal says from time to time how far it has come: a command that was killed goes on
from there when it is given again. A corpus can also be made in shards on machines that do not speak to each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megatron_poro.data.corpus_files import CHUNK_BYTES, file_size
from megatron_poro.data.documents import CorpusFile, reader_of_key
from megatron_poro.data.indexed_format import token_type
from megatron_poro.data.ledger import Job, Ledger, Part, TokenizingProgress
from megatron_poro.data.manifest import ShardRecord, corpus_name
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.data.partial import PartialDataset
from megatron_poro.data.word_cache import Encoder
from megatron_poro.data.workers import Encoding, encode_in_order
from megatron_poro.errors import DataError
from megatron_poro.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Shard:
    """One of ``of`` parts of a corpus, equal in bytes; ``index`` counts from 0."""

    index: int
    of: int


def tokenize_files(
    inputs: Sequence[Path], output: Path, *, load_tokenizer: Callable[[], Tokenizer], key: str = "text", **options: Any
) -> DatasetMetadata:
    """Writes the dataset ``output`` from the texts under ``key`` of ``inputs``, in their order.

    See ``tokenize_corpus``, which takes the other options and raises the errors.
    """
    files = [CorpusFile(path, reader_of_key(key)) for path in inputs]
    return tokenize_corpus(files, output, load_tokenizer=load_tokenizer, **options)


def tokenize_corpus(
    files: Sequence[CorpusFile],
    output: Path,
    *,
    load_tokenizer: Callable[[], Tokenizer],
    workers: int = 1,
    skip_malformed: bool = False,
    shard: Shard | None = None,
    overwrite: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    on_progress: Callable[[TokenizingProgress], None] | None = None,
) -> DatasetMetadata:
    """Writes the dataset ``output`` from the documents of ``files``, in their order.

    Each document is the ids of its text and then ``eos_id``; no other token is added. A failure leaves no dataset
    behind, but what was done, so that the same call goes on from there. A call whose dataset is there already, made of
    the same files, does nothing.

    Args:
        files: the corpus.
        output: prefix of the dataset.
        load_tokenizer: called once here and once in each worker; must be picklable if there are several workers.
        workers: processes that encode; 1 encodes in this process.
        skip_malformed: count, report and leave out records that cannot be read; otherwise the first is an error.
        shard: make only this part of the corpus.
        overwrite: replace a dataset that exists.
        chunk_bytes: about how much text a worker is given at a time; does not change the result.
        on_progress: called after each chunk.

    Raises:
        DataError: if an input is missing, malformed or holds no document, a worker fails, or the output exists.
    """
    if not files:
        raise DataError(f"no corpus files were named to make {output} from.")
    tokenizer = load_tokenizer()
    parts = _parts(files, shard)
    job = Job(output, tokenizer, parts, _shard_record(files, shard), chunk_bytes)
    stored = token_type(tokenizer.vocab_size)
    # several workers load it each for themselves
    load = (lambda: tokenizer) if workers <= 1 else load_tokenizer
    encoding = Encoding(partial(_make_encoder, load, stored), tokenizer.vocab_size, skip_malformed)
    with PartialDataset(output, stored) as dataset:
        just_published = dataset.complete_publishing()
        done = job.finished_before(overwrite=overwrite and not just_published)
        if done is not None:
            dataset.discard()
            return done
        ledger = Ledger(dataset, job)
        for task, encoded in encode_in_order(ledger.tasks_left(), encoding, workers):
            ledger.add(task, encoded)
            if on_progress is not None:
                on_progress(ledger.progress(task.chunk.end))
        ledger.finish()
        if dataset.documents == 0 and shard is None:
            dataset.discard()
            names = ", ".join(str(file.path) for file in files)
            raise DataError(f"{names} hold no document with a token; {output} was not written.")
        return ledger.publish()


def _make_encoder(load_tokenizer: Callable[[], Tokenizer], stored: np.dtype[Any]) -> Encoder:
    return Encoder(load_tokenizer(), stored)


def shard_prefix(prefix: Path, shard: Shard) -> Path:
    """The name of one shard of the dataset ``prefix``."""
    return Path(f"{prefix}.shard-{shard.index:05d}-of-{shard.of:05d}")


def _parts(files: Sequence[CorpusFile], shard: Shard | None) -> list[Part]:
    """The files, or what a shard has of each: an equal share of the bytes of all of them laid end to end."""
    sizes = [file_size(file.path) for file in files]
    total = sum(sizes)
    index, of = (0, 1) if shard is None else (shard.index, shard.of)
    first, last = total * index // of, total * (index + 1) // of
    parts: list[Part] = []
    offset = 0
    for file, size in zip(files, sizes, strict=True):
        begin, end = max(0, first - offset), min(size, last - offset)
        # an empty file belongs where it would begin, so that every file is in the manifest of some shard
        at_home = first <= offset < last or (offset == total and index == of - 1)
        if begin < end or (size == 0 and at_home):
            parts.append(Part(file, size, file.path.stat().st_mtime_ns, begin, end))
        offset += size
    return parts


def _shard_record(files: Sequence[CorpusFile], shard: Shard | None) -> ShardRecord | None:
    if shard is None:
        return None
    corpus = corpus_name([(str(file.path), file_size(file.path), file.reader.name) for file in files])
    return ShardRecord(index=shard.index, of=shard.of, corpus=corpus)
