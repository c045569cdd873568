"""``poro data tokenize`` and ``poro data merge``: corpus files to an indexed dataset, in one go or in shards."""

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megatron_poro import logs
from megatron_poro.data.ledger import TokenizingProgress
from megatron_poro.data.merging import find_shards, merge_datasets
from megatron_poro.data.tokenizing import Shard, shard_prefix, tokenize_files
from megatron_poro.errors import DataError
from megatron_poro.tokenizer.tokenizer import Tokenizer

REPORT_SECONDS = 10.0
REDRAW_SECONDS = 0.2
_BAR = 24
_log = logs.get_logger(__name__)

_TOKENIZE_NOTES = """\
A command that was killed or failed goes on where it was when it is given again; until then PREFIX.partial holds what it
has done, and no dataset is there. Given once more after its end it does nothing.

On several machines at once, each task does one range of the corpus (here in an array job, 0 to 15), then join:

  poro data tokenize --input corpus/*.jsonl.zst --output data/web --tokenizer tokenizer --shard $SLURM_ARRAY_TASK_ID/16
  poro data merge --shards --output data/web
"""


def tokenize(argv: Sequence[str]) -> int:
    """Runs ``poro data tokenize``; returns the exit status."""
    arguments = _tokenize_parser().parse_args(argv)
    if arguments.workers < 1:
        raise DataError(f"--workers {arguments.workers} must be at least 1.")
    if arguments.workers > 1:
        # the workers inherit it: each process uses one core instead of all of them using all cores
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logs.configure()
    shard = None if arguments.shard is None else _shard(arguments.shard)
    output = arguments.output if shard is None else shard_prefix(arguments.output, shard)
    started = time.monotonic()
    with Reporter(str(output)) as reporter:
        metadata = tokenize_files(
            arguments.input,
            output,
            load_tokenizer=partial(Tokenizer.load, arguments.tokenizer),
            key=arguments.key,
            workers=arguments.workers,
            skip_malformed=arguments.malformed == "skip",
            shard=shard,
            overwrite=arguments.overwrite,
            on_progress=reporter,
        )
    seconds = time.monotonic() - started
    last = reporter.last
    if last is None:
        print(f"{output}: was complete, {metadata.documents:,} documents, {metadata.tokens:,} tokens; nothing done")
        return 0
    print(
        f"{output}: {metadata.documents:,} documents, {metadata.tokens:,} tokens, "
        f"{metadata.empty_documents:,} empty documents left out, {last.dropped:,} records dropped, {seconds:.1f} s, "
        f"{(metadata.tokens - last.resumed_tokens) / max(seconds, 1e-9):,.0f} tokens/s"
    )
    return 0


def merge(argv: Sequence[str]) -> int:
    """Runs ``poro data merge``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="poro data merge", description="Join datasets in the order given.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", nargs="+", type=Path, metavar="PREFIX", help="datasets, in order")
    what.add_argument("--shards", action="store_true", help="all shards of the output, made with tokenize --shard")
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    arguments = parser.parse_args(argv)
    inputs = find_shards(arguments.output) if arguments.shards else arguments.input
    merged = merge_datasets(inputs, arguments.output, overwrite=arguments.overwrite)
    print(
        f"{arguments.output}: {merged.num_documents:,} documents, {merged.num_tokens:,} tokens "
        f"from {len(inputs)} datasets"
    )
    return 0


class Reporter:
    """Shows how far tokenizing is: a bar on a terminal, a line now and then elsewhere.

    Attributes:
        last: what was reported last; None if nothing ever was.
    """

    def __init__(self, name: str) -> None:
        self.last: TokenizingProgress | None = None
        self._name = Path(name).name
        self._terminal = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()
        self._first_bytes: int | None = None

    def __call__(self, progress: TokenizingProgress) -> None:
        """Takes in what has been written so far."""
        self.last = progress
        now = time.monotonic()
        if self._first_bytes is None:
            self._first_bytes = progress.source_bytes
        if now - self._shown < (REDRAW_SECONDS if self._terminal else REPORT_SECONDS):
            return
        self._shown = now
        if self._terminal:
            self._draw(progress, now)
        else:
            _log.info(self._numbers(progress, now))

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self.last is not None:
            self._draw(self.last, time.monotonic())
            print(file=sys.stderr)

    def _draw(self, progress: TokenizingProgress, now: float) -> None:
        """Writes over the line, cut to the terminal so that it stays one."""
        filled = round(_BAR * progress.source_bytes / max(progress.all_source_bytes, 1))
        line = f"{self._name} [{'#' * filled}{' ' * (_BAR - filled)}] {self._numbers(progress, now)}"
        print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)

    def _numbers(self, progress: TokenizingProgress, now: float) -> str:
        seconds = max(now - self._started, 1e-9)
        rate = (progress.tokens - progress.resumed_tokens) / seconds
        share = progress.source_bytes / max(progress.all_source_bytes, 1)
        done = progress.source_bytes - (self._first_bytes or 0)
        left = f", {_clock(seconds * (progress.all_source_bytes - progress.source_bytes) / done)} left" if done else ""
        counts = f"{progress.documents:,} documents, {progress.tokens:,} tokens, {rate:,.0f} tokens/s"
        return f"{share:.1%} of the corpus{left}, {counts}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _tokenize_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro data tokenize",
        description="Corpus files -> PREFIX.bin, PREFIX.idx, PREFIX.meta.json, PREFIX.manifest.json.",
        epilog=_TOKENIZE_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", nargs="+", type=Path, required=True, help=".jsonl, .jsonl.gz, .jsonl.zst, .parquet")
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder with tokenizer.json")
    parser.add_argument("--key", default="text", help="name of the text in a record (default: text)")
    parser.add_argument("--workers", type=int, default=_available_cores(), help="processes (default: all cores)")
    parser.add_argument(
        "--malformed",
        choices=("fatal", "skip"),
        default="fatal",
        help="a record that cannot be read ends the command (default), or is named, counted and left out",
    )
    parser.add_argument("--shard", metavar="I/N", help="make only part I (from 0) of N of the corpus")
    parser.add_argument("--overwrite", action="store_true", help="replace PREFIX if it exists")
    return parser


def _shard(words: str) -> Shard:
    match = re.fullmatch(r"(\d+)/(\d+)", words)
    if match is None or int(match[1]) >= int(match[2]):
        raise DataError(f"--shard {words} must be I/N with I from 0 to N - 1, such as 0/16.")
    return Shard(int(match[1]), int(match[2]))


def _available_cores() -> int:
    """Cores this process may use: inside a Slurm job or a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
