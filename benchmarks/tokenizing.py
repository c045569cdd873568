"""Tokenizing a corpus: ours, the tokenizers library's encode_batch, and Megatron-LM's way, in turn, in CPU seconds.

Run from the checkout: ``python -m benchmarks.tokenizing --tokenizer work/smoke/tokenizer``, after ``make smoke``. All
read the same JSON lines and write the same ids; that they do is checked. Each run is a process of its own, whose
CPU seconds (with its workers') and peak memory are taken, start-up included. Megatron's way is the loop of its
tools/preprocess_data.py (a pool, ``imap`` in batches of 32 lines, one call of the tokenizer a document, ``tobytes`` a
document), not the script itself: once with the transformers tokenizer that Megatron uses, once with the bare library.

Without ``--corpus`` the corpus is the Python sources of this machine, cut into documents of about 3 kB.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from megatron_poro.data.indexed_format import token_type
from megatron_poro.data.tokenizing import tokenize_files
from megatron_poro.tokenizer.tokenizer import Tokenizer

DOCUMENT_CHARACTERS = 3000
_ids_of: Callable[[str], list[int]]  # of a pool process of Megatron's way
_eos_id: int


def ours(corpus: Path, output: Path, folder: Path, workers: int) -> None:
    """What ``poro data tokenize`` does."""
    tokenize_files([corpus], output, load_tokenizer=partial(Tokenizer.load, folder), workers=workers)


def library(corpus: Path, output: Path, folder: Path, workers: int) -> None:
    """``encode_batch`` of a thousand documents at a time, on as many threads as there are workers."""
    tokenizer = Tokenizer.load(folder)
    stored = token_type(tokenizer.vocab_size)
    with open(corpus, encoding="utf-8") as lines, open(f"{output}.bin", "wb") as tokens:
        while texts := [json.loads(line)["text"] for line in islice(lines, 1000)]:
            for ids in tokenizer.encode_batch(texts):
                tokens.write(np.array([*ids, tokenizer.eos_id], dtype=stored).tobytes())


def megatron_way(corpus: Path, output: Path, folder: Path, workers: int, *, bare: bool = False) -> None:
    """The loop of Megatron-LM's preprocess_data.py."""
    stored = token_type(Tokenizer.load(folder).vocab_size)
    with (
        multiprocessing.get_context("spawn").Pool(workers, initializer=_load, initargs=(folder, bare)) as pool,
        open(corpus, encoding="utf-8") as lines,
        open(f"{output}.bin", "wb") as tokens,
    ):
        for ids in pool.imap(_encode_line, lines, 32):
            tokens.write(np.array(ids, dtype=stored).tobytes())
        pool.close()
        pool.join()


METHODS: dict[str, Callable[[Path, Path, Path, int], None]] = {
    "ours": ours,
    "encode_batch": library,
    "Megatron's way": megatron_way,
    "the same, bare": partial(megatron_way, bare=True),
}


def main() -> None:
    """Prints a line for each size and method, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR")
    parser.add_argument("--corpus", type=Path, metavar="FILE.jsonl", help="records with a text under `text`")
    parser.add_argument("--megabytes", type=int, default=40, help="size of the larger run (default: 40)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the median is printed (default: 3)")
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "CORPUS", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        method, corpus, output = arguments.child
        METHODS[method](Path(corpus), Path(output), arguments.tokenizer, arguments.workers)
        print(json.dumps(_used()))
        return
    with tempfile.TemporaryDirectory() as folder:
        for share in (4, 1):
            corpus = Path(folder) / f"{share}.jsonl"
            _write_corpus(corpus, arguments.corpus, arguments.megabytes * 1_000_000 // share)
            _compare(corpus, arguments)


def _compare(corpus: Path, arguments: argparse.Namespace) -> None:
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    results: set[str] = set()
    for _ in range(arguments.rounds):
        for name in METHODS:
            output = corpus.with_name("out")
            options = ["--tokenizer", str(arguments.tokenizer), "--workers", str(arguments.workers)]
            command = [sys.executable, "-m", "benchmarks.tokenizing", *options, "--child", name, str(corpus)]
            many = {"TOKENIZERS_PARALLELISM": "false"} if name != "encode_batch" else {}
            threads = {"RAYON_NUM_THREADS": str(arguments.workers), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [*command, str(output)], env={**os.environ, **threads, **many}, capture_output=True, check=True
            )
            runs[name].append(tuple(json.loads(done.stdout.splitlines()[-1])))
            results.add(hashlib.sha256(Path(f"{output}.bin").read_bytes()).hexdigest())
            for path in output.parent.glob("out.*"):
                path.unlink()
    if len(results) != 1:
        sys.exit("the methods wrote different ids")
    size = corpus.stat().st_size / 1e6
    with open(corpus, "rb") as lines:
        documents = sum(1 for _ in lines)
    print(f"{size:.1f} MB, {documents:,} documents, {arguments.workers} workers, median of {arguments.rounds}")
    fastest = size / statistics.median(cpu for cpu, _ in runs["ours"])
    for name, found in runs.items():
        rate = size / statistics.median(cpu for cpu, _ in found)
        memory = statistics.median(megabytes for _, megabytes in found)
        print(
            f"  {name:16} {rate:6.2f} MB per CPU second, peak {memory:5.0f} MB a process, ours is {fastest / rate:.2f}x"
        )


def _used() -> tuple[float, float]:
    """CPU seconds of this process and its children, and the peak memory of the largest of them in megabytes."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found), max(one.ru_maxrss for one in found) / 1000


def _write_corpus(target: Path, source: Path | None, size: int) -> None:
    with open(target, "wb") as file:
        for line in _lines_of_this_machine() if source is None else open(source, "rb"):  # noqa: SIM115 (read to the end)
            file.write(line)
            if file.tell() >= size:
                return


def _lines_of_this_machine() -> Iterator[bytes]:
    for place in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_paths()[place]).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            for start in range(0, len(text), DOCUMENT_CHARACTERS):
                yield json.dumps({"text": text[start : start + DOCUMENT_CHARACTERS]}).encode() + b"\n"


def _load(folder: Path, bare: bool) -> None:
    global _ids_of, _eos_id
    tokenizer = Tokenizer.load(folder)
    _ids_of, _eos_id = tokenizer.encode, tokenizer.eos_id
    if not bare:
        from transformers import AutoTokenizer  # heavy, and only this process wants it

        _ids_of = partial(_ids_by_transformers, AutoTokenizer.from_pretrained(folder))


def _ids_by_transformers(tokenizer: Callable[[str], Any], text: str) -> list[int]:
    ids: list[int] = tokenizer(text).input_ids
    return ids


def _encode_line(line: str) -> list[int]:
    return [*_ids_of(json.loads(line)["text"]), _eos_id]


if __name__ == "__main__":
    main()
