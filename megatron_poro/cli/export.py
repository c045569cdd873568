"""``poro export``: a checkpoint, or the milestones of a run, as Hugging Face models that are proven equal to them."""

import argparse
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from megatron_poro.checkpoint.hf_export import Export, export_checkpoint
from megatron_poro.checkpoint.locating import (
    CHECKPOINTS_FOLDER,
    EXPORTS_FOLDER,
    checkpoint_at,
    exports_folder,
    store_at,
)
from megatron_poro.checkpoint.state import META_NAME, RunState
from megatron_poro.checkpoint.store import CheckpointStore, step_name
from megatron_poro.checkpoint.watching import KeptMilestone, Watch, kept_milestones
from megatron_poro.errors import CheckpointError, PoroError
from megatron_poro.logs import configure, get_logger
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.units import format_bytes, format_seconds, parse_count

FAILED_STATUS = 2

logger = get_logger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs ``poro export`` with the arguments after it; returns the exit status."""
    arguments = _parser().parse_args(argv)
    configure()
    if arguments.watch:
        return _watch(arguments)
    if arguments.milestones:
        return _export_milestones(arguments)
    checkpoint = checkpoint_at(arguments.path, step=arguments.step)
    output = arguments.output or _folder_of_exports(checkpoint) / _label(checkpoint)
    _export(checkpoint, output, arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro export",
        description="Writes a checkpoint as a Hugging Face model, and proves with transformers that it is the same "
        "model. An export that is not proven does not get its name, and the exit status says so.",
    )
    parser.add_argument("path", type=Path, metavar="RUN_OR_CHECKPOINT", help="run folder, or one step_... folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--milestones", action="store_true", help="every milestone of the run that has not been exported yet"
    )
    which.add_argument(
        "--watch",
        action="store_true",
        help="like --milestones, and then each further one when it is there, until the run's last; SIGTERM ends it",
    )
    which.add_argument("--step", type=int, metavar="N", help="this step of the run (default: the newest)")
    parser.add_argument(
        "--poll", type=_time_to_wait, default=60.0, metavar="SECONDS", help="between two looks of --watch (default: 60)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the folder to make, or with --milestones and --watch the one to make them in (default: "
        "<run>/exports/<label>)",
    )
    parser.add_argument(
        "--max-shard-bytes", type=parse_count, metavar="N", help="largest tensor file, such as 5B (default: the run's)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="for a checkpoint that holds none")
    parser.add_argument("--text", help="compare the two models on this text as well")
    parser.add_argument(
        "--no-parity", action="store_true", help="write without proof (both models in fp32 do not fit in memory)"
    )
    return parser


def _time_to_wait(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{text} is not a time to wait")
    return seconds


def _export_milestones(arguments: argparse.Namespace) -> int:
    """Exports what is missing, oldest first. One that fails does not keep the others from being made."""
    store = store_at(arguments.path)
    milestones, unreadable = kept_milestones(store, arguments.output or _folder_of_exports(store.path(0)))
    for problem in unreadable:
        logger.error("%s", problem)
    failed = len(unreadable)
    for milestone in milestones:
        if milestone.is_exported:
            print(f"{milestone.label}: {milestone.output} exists already")
            continue
        try:
            _export(milestone.checkpoint, milestone.output, arguments)
        except PoroError as error:
            logger.error("%s", error)
            failed += 1
    return FAILED_STATUS if failed else 0


def _watch(arguments: argparse.Namespace) -> int:
    """Exports each milestone when it is there; returns after the last one, or when somebody asks."""
    run: Path = arguments.path
    if not run.is_dir():
        raise CheckpointError(f"{run} is not a folder: give the run folder, <run.root>/<run.name>.")

    def export(milestone: KeptMilestone) -> None:
        _export(milestone.checkpoint, milestone.output, arguments)

    watch = Watch(CheckpointStore(run / CHECKPOINTS_FOLDER), arguments.output or run / EXPORTS_FOLDER, export)
    try:
        with _terminated():
            watch.run(partial(time.sleep, arguments.poll))
    except _TerminatedError:
        logger.info("asked to stop; nothing is left half-written, and the next watch goes on from here.")
    for label, error in watch.failed.items():
        logger.error("milestone %s is not exported: %s", label, error)
    return FAILED_STATUS if watch.failed else 0


class _TerminatedError(BaseException):
    """SIGTERM; not an Exception, so that nothing takes it for an export that failed."""


@contextmanager
def _terminated() -> Iterator[None]:
    """Makes SIGTERM an exception, once: what the block has begun is then cleared away and not interrupted again."""

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _export(checkpoint: Path, output: Path, arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    prove = None
    if not arguments.no_parity:
        from megatron_poro.checkpoint.parity import prove_parity  # transformers takes seconds to load

        prove = partial(prove_parity, text=arguments.text)
    export = export_checkpoint(
        checkpoint,
        output,
        prove=prove,
        max_shard_bytes=arguments.max_shard_bytes,
        tokenizer=None if arguments.tokenizer is None else Tokenizer.load(arguments.tokenizer),
    )
    print(_line(export, time.monotonic() - started), flush=True)


def _folder_of_exports(checkpoint: Path) -> Path:
    folder = exports_folder(checkpoint)
    if folder is None:
        raise CheckpointError(f"{checkpoint} is not in a run folder: say with --output where the export goes.")
    return folder


def _label(checkpoint: Path) -> str:
    """Name of an export: the milestone's tokens, else the step."""
    state = RunState.read(checkpoint / META_NAME)
    return state.milestone or step_name(state.step)


def _line(export: Export, seconds: float) -> str:
    files = "1 file" if export.shards == 1 else f"{export.shards} files"
    proof = "not compared with the checkpoint" if export.proof is None else export.proof.verdict.removesuffix(".")
    return (
        f"{export.folder.name}: {export.folder}, {export.tensors} tensors, {export.parameters:,} parameters, "
        f"{format_bytes(export.tensor_bytes)} in {files}, {proof}, {format_seconds(seconds)}"
    )
