"""Trains the same vocabulary with each trainer in turn, and prints CPU seconds, peak memory and ratios.

Run from the checkout: ``python -m benchmarks.tokenizer_training [FILE ...]``. Any text files will do, also gzipped;
each is a document. Every run is a process of its own, so that its CPU time and memory can be told; the runs of the
trainers alternate. The merges are compared too.
"""

import argparse
import gzip
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from megatron_poro.data.documents import read_texts
from megatron_poro.tokenizer.training import Trainer, train_bpe


class Run(NamedTuple):
    """What one training took."""

    cpu_seconds: float
    seconds: float
    peak_bytes: int
    fingerprint: str


def main() -> None:
    """Prints one line for each trainer: medians, and the plain trainer's CPU time divided by its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: the Python library and its docs")
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--megabytes", type=float, default=40.0, help="of text, at most")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        files = arguments.files or sorted(Path(os.__file__).parent.rglob("*.py"))
        size, documents = write_corpus(corpus, files, limit=arguments.megabytes * 1e6)
        print(f"{size / 1e6:.1f} MB in {documents:,} documents, {arguments.vocab_size:,} ids, {os.cpu_count()} cores")
        runs: dict[Trainer, list[Run]] = {trainer: [] for trainer in Trainer}
        for _ in range(arguments.runs):
            for trainer in Trainer:
                runs[trainer].append(run_alone(trainer, corpus, arguments.vocab_size))
    report(runs, size)


def write_corpus(corpus: Path, files: Iterable[Path], *, limit: float) -> tuple[int, int]:
    """Bytes and number of the documents written, of those files that are text in UTF-8."""
    size = documents = 0
    with corpus.open("w", encoding="utf-8") as output:
        for path in files:
            if size >= limit:
                break
            try:
                content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                text = content.decode("utf-8")
            except (OSError, EOFError, UnicodeDecodeError):
                continue
            output.write(json.dumps({"text": text}) + "\n")
            size += len(content)
            documents += 1
    return size, documents


def run_alone(trainer: Trainer, corpus: Path, vocab_size: int) -> Run:
    """One training in a fresh process."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(sender, trainer, corpus, vocab_size))
    process.start()
    sender.close()
    try:
        found: Run = receiver.recv()
    except EOFError:
        sys.exit(f"training with {trainer.value} failed: see above")
    process.join()
    return found


def _train(sender: Connection, trainer: Trainer, corpus: Path, vocab_size: int) -> None:
    cpu, wall = time.process_time(), time.monotonic()
    tokenizer = train_bpe(read_texts(corpus), vocab_size, trainer=trainer)
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sender.send(Run(cpu, wall, peak, tokenizer.fingerprint))


def report(runs: dict[Trainer, list[Run]], size: int) -> None:
    """Prints the table."""
    plain = statistics.median(run.cpu_seconds for run in runs[Trainer.TOKENIZERS])
    print(f"{'trainer':12} {'CPU s (min-max)':>24} {'wall s':>8} {'MB/CPU s':>9} {'peak MB':>8} {'times faster':>13}")
    for trainer, made in runs.items():
        cpu = [run.cpu_seconds for run in made]
        median = statistics.median(cpu)
        print(
            f"{trainer.value:12} {f'{median:.1f} ({min(cpu):.1f}-{max(cpu):.1f})':>24} "
            f"{statistics.median(run.seconds for run in made):>8.1f} {size / 1e6 / median:>9.2f} "
            f"{max(run.peak_bytes for run in made) / 1e6:>8.0f} {plain / median:>13.2f}"
        )
    same = len({run.fingerprint for made in runs.values() for run in made}) == 1
    print("all runs made the same tokenizer" if same else "the runs made DIFFERENT tokenizers")


if __name__ == "__main__":
    main()
