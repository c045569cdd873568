"""Encodes chunks on several processes, in the order of the corpus, with bounded memory.

The parent hands one chunk at a time to each worker. Nothing grows with the corpus: results that are ahead of their turn
are bounded, and the parent stops reading until the slowest chunk is done.
"""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.corpus_files import Chunk
from megatron_poro.data.documents import MALFORMED, DocumentReader, Dropped
from megatron_poro.data.word_cache import Encoder
from megatron_poro.errors import DataError, PoroError

_CHUNKS_AHEAD_PER_WORKER = 4


class Task(NamedTuple):
    """A chunk and its place: which file of the corpus, which chunk of the file."""

    file: int
    chunk_number: int
    reader: DocumentReader
    chunk: Chunk


@dataclass(frozen=True)
class EncodedChunk:
    """What became of the records of one chunk.

    Attributes:
        tokens: ids as the dataset stores them, each document followed by the end-of-document id.
        sizes: int32 ``[documents]``.
        max_token_id: the largest of them; -1 if there are none.
        empty: texts that were left out because they hold no token.
        dropped: records that were left out, by reason.
        malformed: what was wrong with each record that could not be read.
    """

    tokens: bytes
    sizes: NDArray[np.int32]
    max_token_id: int
    empty: int
    dropped: dict[str, int] = field(default_factory=dict)
    malformed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Encoding:
    """How chunks are encoded; made once in each process, by ``make_encoder``, which must be picklable.

    Attributes:
        make_encoder: loads the tokenizer.
        vocab_size: ids at or above it are refused.
        skip_malformed: count records that cannot be read and go on, instead of stopping at the first.
    """

    make_encoder: Callable[[], Encoder]
    vocab_size: int
    skip_malformed: bool

    def encode(self, task: Task, encoder: Encoder) -> EncodedChunk:
        """Parses and encodes one chunk.

        Raises:
            DataError: if a record is malformed and these are not skipped, or the tokenizer refuses a text.
        """
        texts: list[str] = []
        dropped: dict[str, int] = {}
        malformed: list[str] = []
        for document in task.reader.documents(task.chunk):
            if isinstance(document, str):
                texts.append(document)
            elif isinstance(document, Dropped):
                dropped[document.reason] = dropped.get(document.reason, 0) + 1
            elif self.skip_malformed:
                malformed.append(document.problem)
            else:
                raise DataError(
                    f"{document.problem} Correct it, or leave such records out and count them: --malformed skip."
                )
        if malformed:
            dropped[MALFORMED] = dropped.get(MALFORMED, 0) + len(malformed)
        try:
            tokens, sizes, empty = encoder.encode(texts)
        except Exception as error:
            raise DataError(f"tokenizing {task.chunk} failed: {type(error).__name__}: {error}") from error
        largest = int(np.frombuffer(tokens, encoder.stored).max()) if tokens else -1
        if largest >= self.vocab_size:
            raise DataError(f"the tokenizer made id {largest} in {task.chunk}, but has only {self.vocab_size} ids.")
        return EncodedChunk(tokens, sizes, largest, empty, dropped, malformed)


def encode_in_order(tasks: Iterator[Task], encoding: Encoding, workers: int) -> Iterator[tuple[Task, EncodedChunk]]:
    """Encodes on ``workers`` processes, or in this one; yields the results in the order of the tasks.

    Raises:
        DataError: the first that a chunk gives, or saying that a worker died.
    """
    if workers <= 1:
        encoder = encoding.make_encoder()
        yield from ((task, encoding.encode(task, encoder)) for task in tasks)
        return
    pool: list[_Worker] = []
    try:
        pool.extend(_Worker(encoding) for _ in range(workers))
        numbered = enumerate(tasks)
        idle, busy = list(pool), dict[Any, _Worker]()
        ready: dict[int, tuple[Task, EncodedChunk]] = {}
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


class _Worker:
    """One encoding process and the task it has in hand; ``number`` counts tasks over the whole corpus."""

    def __init__(self, encoding: Encoding) -> None:
        # spawn: a forked tokenizer whose thread pool was in use would hang
        context = get_context("spawn")
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_work, args=(other_end, encoding), daemon=True)
        self.process.start()
        other_end.close()
        self.number = -1
        self._task: Task | None = None

    def give(self, number: int, task: Task) -> None:
        """Hands over a task; the worker must be idle."""
        self.number, self._task = number, task
        try:
            self.connection.send(task)
        except OSError:
            raise self._death() from None

    def take(self) -> tuple[Task, EncodedChunk]:
        """The task in hand and its result; raises the worker's error, or says that it died."""
        try:
            result: EncodedChunk | PoroError = self.connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(result, PoroError):
            raise result
        assert self._task is not None, "a worker answers only what it was given"
        return self._task, result

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        self.connection.close()
        self.process.terminate()
        self.process.join()

    def _death(self) -> DataError:
        self.process.join()
        return DataError(
            f"a tokenizing process ended with exit code {self.process.exitcode} at "
            f"{self._task.chunk if self._task else 'its start'}. If it was killed for memory (-9), use fewer --workers."
        )


def _work(connection: "Connection[Any, Any]", encoding: Encoding) -> None:
    """Body of a worker: answers each task with its encoding or its error until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it then stops the workers
    encoder = encoding.make_encoder()
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        try:
            answer: EncodedChunk | PoroError = encoding.encode(task, encoder)
        except PoroError as error:
            answer = error
        try:
            connection.send(answer)
        except OSError:  # the parent was killed; its rerun does this chunk again
            return
