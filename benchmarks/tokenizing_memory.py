"""Peak memory of ``poro data tokenize`` over corpora of 10,000, 100,000 and 1,000,000 small documents.

Run from the checkout: ``python -m benchmarks.tokenizing_memory --tokenizer work/smoke/tokenizer``, after ``make
smoke``. Each size is a process of its own with its workers; the peak of the writing process and that of the largest
worker are printed, and how far each is from the smallest corpus. Documents are cut at random places of one text, so
that every corpus has the same kind of words throughout.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks import texts
from megatron_poro.data.tokenizing import tokenize_files
from megatron_poro.tokenizer.tokenizer import Tokenizer

DOCUMENTS = (10_000, 100_000, 1_000_000)
TEXTS = 5_000
"""So many texts are the quarry of the documents: tens of megabytes."""


def main() -> None:
    """Prints a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR")
    parser.add_argument("--text", choices=texts.TEXTS, default="prose", help="what to encode (benchmarks/texts.py)")
    parser.add_argument("--documents", type=int, nargs="+", default=DOCUMENTS, help="sizes of the corpora")
    parser.add_argument("--characters", type=int, default=200, help="of a document (default: 200)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--child", nargs=2, metavar=("CORPUS", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        corpus, output = map(Path, arguments.child)
        tokenize_files(
            [corpus], output, load_tokenizer=partial(Tokenizer.load, arguments.tokenizer), workers=arguments.workers
        )
        print(json.dumps([resource.getrusage(who).ru_maxrss / 1000 for who in _PROCESSES.values()]))
        return
    print(f"{'documents':>12}" + "".join(f"{name:>22}" for name in _PROCESSES))
    smallest: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        for documents in arguments.documents:
            with open(corpus, "w", encoding="utf-8") as file:
                file.writelines(islice(_lines(arguments.text, arguments.characters), documents))
            peaks = _peaks(corpus, documents, arguments)
            smallest = smallest or peaks
            cells = (f"{peak:6.1f} MB ({peak / least - 1:+.1%})" for peak, least in zip(peaks, smallest, strict=True))
            print(f"{documents:12,}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


_PROCESSES = {"writing process": resource.RUSAGE_SELF, "largest worker": resource.RUSAGE_CHILDREN}


def _peaks(corpus: Path, documents: int, arguments: argparse.Namespace) -> list[float]:
    options = ["--tokenizer", str(arguments.tokenizer), "--workers", str(arguments.workers)]
    child = ["--child", str(corpus), str(corpus.with_name(f"out{documents}"))]
    command = [sys.executable, "-m", "benchmarks.tokenizing_memory", *options, *child]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peaks: list[float] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def _lines(kind: str, characters: int) -> Iterator[str]:
    """Documents without end, from anywhere in the texts of a kind."""
    text, rng = "".join(islice(texts.TEXTS[kind](), TEXTS)), random.Random(0)
    while True:
        start = rng.randrange(len(text) - characters)
        yield json.dumps({"text": text[start : start + characters]}) + "\n"


if __name__ == "__main__":
    main()
