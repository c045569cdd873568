"""Turns corpus files into an indexed dataset with many processes; the result does not depend on how many.

The parent reads chunks, hands one at a time to each worker, and writes what comes back in the order of the corpus. A
chunk is parsed and encoded where its errors can name file and line. Nothing grows with the corpus: results that are
ahead of their turn are bounded, and the parent stops reading until the slowest chunk is done.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.documents import CHUNK_BYTES, Chunk, read_chunks
from megatron_poro.data.indexed_writer import IndexedWriter
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.errors import DataError, PoroError
from megatron_poro.tokenizer.tokenizer import Tokenizer

_CHUNKS_AHEAD_PER_WORKER = 4


@dataclass(frozen=True)
class TokenizingProgress:
    """What has been written so far."""

    documents: int
    tokens: int
    empty_documents: int


@dataclass(frozen=True)
class EncodedChunk:
    """The documents of one chunk as ids.

    Attributes:
        tokens: int32 ``[sum of sizes]``, each document followed by the end-of-document id.
        sizes: int32 ``[documents]``.
        empty: documents that were left out because they hold no token.
    """

    tokens: NDArray[np.int32]
    sizes: NDArray[np.int32]
    empty: int


def tokenize_files(
    inputs: Sequence[Path],
    output: Path,
    *,
    load_tokenizer: Callable[[], Tokenizer],
    key: str = "text",
    workers: int = 1,
    overwrite: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    on_progress: Callable[[TokenizingProgress], None] | None = None,
) -> DatasetMetadata:
    """Writes the dataset ``output`` from the texts of ``inputs``, in their order.

    Each document is the ids of its text and then ``eos_id``; no other token is added. A failure of any kind leaves no
    dataset behind.

    Args:
        inputs: corpus files.
        output: prefix of the dataset.
        load_tokenizer: called once here and once in each worker; must be picklable if there are several workers.
        key: name of the text in a record.
        workers: processes that encode; 1 encodes in this process.
        overwrite: replace a dataset that exists.
        chunk_bytes: about how much text a worker is given at a time; does not change the result.
        on_progress: called after each chunk.

    Raises:
        DataError: if an input is missing, malformed or holds no document, a worker fails, or the output exists.
    """
    if not inputs:
        raise DataError(f"no corpus files were named to make {output} from.")
    tokenizer = load_tokenizer()
    chunks = chain.from_iterable(read_chunks(path, key=key, chunk_bytes=chunk_bytes) for path in inputs)
    empty = 0
    with IndexedWriter(output, vocab_size=tokenizer.vocab_size, overwrite=overwrite) as writer:
        if workers <= 1:
            encoded: Iterator[EncodedChunk] = (encode_chunk(chunk, key, tokenizer) for chunk in chunks)
        else:
            encoded = _encode_in_order(chunks, key, load_tokenizer, workers)
        for chunk in encoded:
            writer.append_many(chunk.tokens, chunk.sizes)
            empty += chunk.empty
            if on_progress is not None:
                on_progress(TokenizingProgress(writer.num_documents, writer.num_tokens, empty))
        if writer.num_documents == 0:
            raise DataError(f"{', '.join(map(str, inputs))} hold no document with a token; {output} was not written.")
        metadata = DatasetMetadata(
            tokenizer=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            documents=writer.num_documents,
            tokens=writer.num_tokens,
            max_token_id=writer.max_token_id,
            empty_documents=empty,
            inputs=tuple(str(path) for path in inputs),
        )
        writer.commit(metadata)
    return metadata


def encode_chunk(chunk: Chunk, key: str, tokenizer: Tokenizer) -> EncodedChunk:
    """Parses and encodes one chunk.

    Raises:
        DataError: if a record is malformed, or the tokenizer refuses a text.
    """
    texts = chunk.texts(key)
    try:
        encoded = tokenizer.encode_batch(texts)
    except Exception as error:
        raise DataError(f"tokenizing {chunk} failed: {type(error).__name__}: {error}") from error
    documents = [ids for ids in encoded if ids]
    sizes = np.array([len(ids) + 1 for ids in documents], dtype=np.int32)
    with_ends = chain.from_iterable(chain(ids, (tokenizer.eos_id,)) for ids in documents)
    tokens = np.fromiter(with_ends, dtype=np.int32, count=int(sizes.sum(dtype=np.int64)))
    return EncodedChunk(tokens, sizes, empty=len(encoded) - len(documents))


class _Worker:
    """One encoding process and the chunk it has in hand; ``number`` counts chunks over the whole corpus."""

    def __init__(self, key: str, load_tokenizer: Callable[[], Tokenizer]) -> None:
        # spawn: a forked tokenizer whose thread pool was in use would hang
        context = get_context("spawn")
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_work, args=(other_end, key, load_tokenizer), daemon=True)
        self.process.start()
        other_end.close()
        self.number = -1
        self.chunk: Chunk | None = None

    def give(self, number: int, chunk: Chunk) -> None:
        """Hands over a chunk; the worker must be idle."""
        self.number, self.chunk = number, chunk
        try:
            self.connection.send(chunk)
        except OSError:
            raise self._death() from None

    def take(self) -> EncodedChunk:
        """The result for the chunk in hand; raises the worker's error, or says that it died."""
        try:
            result: EncodedChunk | PoroError = self.connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        self.chunk = None
        if isinstance(result, PoroError):
            raise result
        return result

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        self.connection.close()
        self.process.terminate()
        self.process.join()

    def _death(self) -> DataError:
        self.process.join()
        return DataError(
            f"a tokenizing process ended with exit code {self.process.exitcode} at {self.chunk}. "
            "If it was killed for memory (-9), use fewer --workers."
        )


def _work(connection: "Connection[Any, Any]", key: str, load_tokenizer: Callable[[], Tokenizer]) -> None:
    """Body of a worker: answers each chunk with its encoding or its error until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it then stops the workers
    tokenizer = load_tokenizer()
    while True:
        try:
            chunk: Chunk = connection.recv()
        except EOFError:
            return
        try:
            answer: EncodedChunk | PoroError = encode_chunk(chunk, key, tokenizer)
        except PoroError as error:
            answer = error
        connection.send(answer)


def _encode_in_order(
    chunks: Iterator[Chunk], key: str, load_tokenizer: Callable[[], Tokenizer], workers: int
) -> Iterator[EncodedChunk]:
    """Encodes chunks on several processes; yields the results in the order of the chunks."""
    pool: list[_Worker] = []
    try:
        pool.extend(_Worker(key, load_tokenizer) for _ in range(workers))
        numbered = enumerate(chunks)
        idle, busy = list(pool), dict[Any, _Worker]()
        ready: dict[int, EncodedChunk] = {}
        turn, exhausted = 0, False
        while True:
            # give work to idle workers, unless the results are too far ahead of the one whose turn it is
            while idle and not exhausted and len(ready) + len(busy) < _CHUNKS_AHEAD_PER_WORKER * workers:
                item = next(numbered, None)
                if item is None:
                    exhausted = True
                    break
                worker = idle.pop()
                worker.give(*item)
                busy[worker.connection] = worker
            if not busy and not ready:
                return
            # collect whatever is done
            for connection in wait(list(busy)):
                worker = busy.pop(connection)
                ready[worker.number] = worker.take()
                idle.append(worker)
            # hand on what is next in order
            while turn in ready:
                yield ready.pop(turn)
                turn += 1
    finally:
        for worker in pool:
            worker.stop()
