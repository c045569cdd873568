"""Tokenizing a corpus: ours, the tokenizers library's encode_batch, and Megatron-LM's way, in turn, in CPU seconds.

Run from the checkout: ``python -m benchmarks.tokenizing --tokenizer work/smoke/tokenizer``, after ``make smoke``. All
read the same JSON lines and write the same ids; that they do is checked. Each run is a process of its own, whose
CPU seconds (with its workers') and peak memory are taken, start-up included.

``--megatron PATH`` names a checkout of Megatron-LM, whose tools/preprocess_data.py is then run as it is. Without it,
its loop is imitated (a pool, ``imap`` in batches of 32 lines, one call of the transformers tokenizer and ``tobytes`` a
document). The same loop around the bare library shows what of that is due to transformers.
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
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import texts
from megatron_poro.data.indexed_format import token_type
from megatron_poro.data.tokenizing import tokenize_files
from megatron_poro.tokenizer.tokenizer import Tokenizer

_ids_of: Callable[[str], list[int]]  # of a pool process of the imitation
_eos_id: int


def ours(corpus: Path, output: Path, folder: Path, workers: int) -> None:
    """What ``poro data tokenize`` does."""
    tokenize_files([corpus], output, load_tokenizer=partial(Tokenizer.load, folder), workers=workers)


def library(corpus: Path, output: Path, folder: Path, workers: int) -> None:
    """``encode_batch`` of a thousand documents at a time, on as many threads as there are workers."""
    tokenizer = Tokenizer.load(folder)
    stored = token_type(tokenizer.vocab_size)
    with open(corpus, encoding="utf-8") as lines, open(f"{output}.bin", "wb") as tokens:
        while documents := [json.loads(line)["text"] for line in islice(lines, 1000)]:
            for ids in tokenizer.encode_batch(documents):
                tokens.write(np.array([*ids, tokenizer.eos_id], dtype=stored).tobytes())


def imitation(corpus: Path, output: Path, folder: Path, workers: int, *, bare: bool = False) -> None:
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


def megatron(corpus: Path, output: Path, folder: Path, workers: int, checkout: Path) -> None:
    """Megatron-LM's own preprocess_data.py."""
    options = ["--input", corpus, "--output-prefix", output, "--append-eod", "--workers", workers]
    tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", folder]
    command = [sys.executable, checkout / "tools" / "preprocess_data.py", *options, *tokenizer]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([str(word) for word in command], check=True, env=environment)
    Path(f"{output}_text_document.bin").rename(f"{output}.bin")


def _methods(checkout: Path | None) -> dict[str, Callable[[Path, Path, Path, int], None]]:
    theirs = (
        {"Megatron imitated": imitation} if checkout is None else {"Megatron": partial(megatron, checkout=checkout)}
    )
    return {"ours": ours, "encode_batch": library, **theirs, "bare in its loop": partial(imitation, bare=True)}


def main() -> None:
    """Prints a line for each size and method, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR")
    parser.add_argument("--text", choices=texts.TEXTS, default="code", help="what to encode (benchmarks/texts.py)")
    parser.add_argument("--corpus", type=Path, metavar="FILE.jsonl", help="this instead; records with a `text`")
    parser.add_argument("--megatron", type=Path, metavar="DIR", help="a checkout of Megatron-LM that can be run here")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10, 40], help="sizes (default: 10 40)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the median is printed (default: 3)")
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "CORPUS", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    methods = _methods(arguments.megatron)
    if arguments.child:
        method, corpus, output = arguments.child
        methods[method](Path(corpus), Path(output), arguments.tokenizer, arguments.workers)
        print(json.dumps(_used()))
        return
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in arguments.megabytes:
            corpus = Path(folder) / f"{megabytes}.jsonl"
            if arguments.corpus:
                _write_part(arguments.corpus, corpus, megabytes)
            else:
                texts.write(arguments.text, corpus, megabytes)
            _compare(corpus, arguments)


def _compare(corpus: Path, arguments: argparse.Namespace) -> None:
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in _methods(arguments.megatron)}
    results: set[str] = set()
    for _ in range(arguments.rounds):
        for name, found in runs.items():
            used, digest = _run(name, corpus, arguments)
            found.append(used)
            results.add(digest)
    if len(results) != 1:
        sys.exit("the methods wrote different ids")
    size = corpus.stat().st_size / 1e6
    with open(corpus, "rb") as lines:
        documents = sum(1 for _ in lines)
    what = arguments.corpus or arguments.text
    print(f"{what}: {size:.1f} MB, {documents:,} documents, {arguments.workers} workers, median of {arguments.rounds}")
    fastest = size / statistics.median(cpu for cpu, _ in runs["ours"])
    for name, found in runs.items():
        rate = size / statistics.median(cpu for cpu, _ in found)
        memory = statistics.median(megabytes for _, megabytes in found)
        print(
            f"  {name:17} {rate:6.2f} MB per CPU second, peak {memory:5.0f} MB a process, ours is {fastest / rate:.2f}x"
        )


def _run(name: str, corpus: Path, arguments: argparse.Namespace) -> tuple[tuple[float, float], str]:
    """CPU seconds and megabytes of one run in its own process, and the checksum of its ids."""
    output = corpus.with_name("out")
    options = ["--tokenizer", str(arguments.tokenizer), "--workers", str(arguments.workers)]
    if arguments.megatron:
        options += ["--megatron", str(arguments.megatron)]
    command = [sys.executable, "-m", "benchmarks.tokenizing", *options, "--child", name, str(corpus), str(output)]
    one_thread = {"TOKENIZERS_PARALLELISM": "false"} if name != "encode_batch" else {}
    threads = {"RAYON_NUM_THREADS": str(arguments.workers), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**os.environ, **threads, **one_thread}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    cpu, megabytes = json.loads(done.stdout.splitlines()[-1])
    digest = hashlib.sha256(Path(f"{output}.bin").read_bytes()).hexdigest()
    for path in output.parent.glob("out*"):
        path.unlink()
    return (cpu, megabytes), digest


def _used() -> tuple[float, float]:
    """CPU seconds of this process and its children, and the peak memory of the largest of them in megabytes."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found), max(one.ru_maxrss for one in found) / 1000


def _write_part(source: Path, target: Path, megabytes: float) -> None:
    with open(source, "rb") as lines, open(target, "wb") as file:
        for line in lines:
            file.write(line)
            if file.tell() >= megabytes * 1e6:
                return


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
