"""``poro rewind``: takes a run back to a checkpoint, with steps after it that it will not learn from this time.

Nothing is deleted and nothing overwritten: what came after goes to ``abandoned/<number>`` in the run's folder, where
``poro ckpt`` and every other command can read it. Needs no torch.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from megatron_poro.checkpoint.locating import CHECKPOINTS_FOLDER
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.errors import CheckpointError
from megatron_poro.train.abandoning import ABANDONED_FOLDER
from megatron_poro.train.folder import RunFolder
from megatron_poro.train.lineage import RECORD_NAME, Lineage, Rewind, StepRange, read_record, record_of


def main(argv: Sequence[str]) -> int:
    """Runs ``poro rewind`` with the arguments after it; returns the exit status."""
    arguments = _parser().parse_args(argv)
    rewind = _rewind(arguments.run, arguments.to, arguments.skip, arguments.reason)
    print(f"{arguments.run} is at step {rewind.to} again; what came after it is in {ABANDONED_FOLDER}/{rewind.number}.")
    if rewind.skip is not None:
        print(f"The next job does not learn from steps {rewind.skip.first} to {rewind.skip.last}.")
    return 0


def _rewind(path: Path, to: int, skip: StepRange | None, reason: str) -> Rewind:
    """Rewinds a run while no job holds it.

    Raises:
        CheckpointError: if the folder is not a run's, or cannot go back to that step.
        ConfigError: if a job holds it.
    """
    if not (path / CHECKPOINTS_FOLDER).is_dir() and not (path / RECORD_NAME).exists():
        raise CheckpointError(
            f"{path} is not the folder of a run: it has neither {CHECKPOINTS_FOLDER} nor {RECORD_NAME}."
        )
    folder = RunFolder(path)
    try:
        folder.claim()
        # a run that has lost its checkpoints may be begun again; that is what --to 0 is for
        record = read_record(path) or record_of(path, CheckpointStore(folder.checkpoints))
        return Lineage(path, record, writes=True).rewind(to, skip, reason)
    finally:
        folder.release()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro rewind",
        description="Take a run back to a checkpoint. Checkpoints, metrics and exports of later steps are moved to "
        "abandoned/<number> in its folder. Refused while a job holds the run.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--to", type=int, required=True, metavar="STEP", help="step of a valid checkpoint, or 0 to begin again"
    )
    parser.add_argument(
        "--skip", type=_step_range, metavar="A:B", help="do not learn from the samples of steps A to B, both included"
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, to be kept in run.json")
    return parser


def _step_range(text: str) -> StepRange:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is not a range of steps; write first:last, such as 120:125")
    return StepRange(int(match[1]), int(match[2]))
