"""A disk that is full, broken or read-only at any file operation of a save, in a training that goes on."""

import errno
import logging
import random
from pathlib import Path

from megatron_poro.checkpoint import manifest
from megatron_poro.cli.train import main
from megatron_poro.metrics import names
from megatron_poro.train.exit_code import ExitCode
from tests.faults.tally import Budget, Tally
from tests.integration.toy import STEPS, RunOnDisk, ToyCorpora, assert_same_values
from tests.support.faulty_disk import FaultyDisk, Operation, refuse

CLAIM = (
    "A training whose disk refuses any one operation of its saves keeps valid checkpoints, tells and counts the "
    "failure, saves again when the next checkpoint is due, and ends with the values of a training without the fault"
)
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
EVERY = 2
"""Steps between two saves."""


def campaign(budget: Budget, rng: random.Random, folder: Path) -> Tally:
    """Goes through the operations of all saves of a training with each error, at once and in the background.

    A trial is a whole training. Its kind is the error, the way to save and what became of the checkpoint.
    """
    corpora = ToyCorpora.make(folder / "corpora")
    train(corpora, folder / "control", in_background=False)
    control = RunOnDisk(folder / "control")
    counts = {way: len(train(corpora, folder / f"counted_{way}", in_background=way)) for way in (False, True)}
    rounds = [(way, at, number) for way, count in counts.items() for at in range(count) for number in ERRORS]
    rng.shuffle(rounds)

    def trial(number: int) -> str:
        way, at, error = rounds[number % len(rounds)]
        root = folder / f"trial_{number}"
        operations = train(corpora, root, in_background=way, at=at, error=error)
        run = RunOnDisk(root)
        assert STEPS in run.steps()
        assert len(run.steps()) >= 2, f"only {run.steps()} are left"
        assert all(manifest.problems(run.store.path(step)) == [] for step in run.steps())
        assert_same_values(control, run, STEPS)
        assert run.curve() == control.curve()
        failures = sum(line.get(names.FAILED_CHECKPOINTS.key, 0) for line in run.lines())
        assert failures in (0, 1), f"{failures} failures of one fault"
        what = "save failed" if failures else "checkpoint complete"
        return f"{errno.errorcode[error]} {'in the background' if way else 'at once'}: {operations[at].kind}, {what}"

    tally = Tally(CLAIM).run(budget, trial)
    for way, count in counts.items():
        tally.facts[f"operations of a training's saves, {'in the background' if way else 'at once'}"] = count
    tally.facts["trials of one round"] = len(rounds)
    return tally


def train(
    corpora: ToyCorpora, root: Path, *, in_background: bool, at: int | None = None, error: int = 0
) -> list[Operation]:
    """Trains to the end; the disk fails at one operation of its saves. Returns what was done to the checkpoints."""
    arguments = corpora.arguments(
        root, f"checkpoint.every_steps={EVERY}", f"checkpoint.asynchronous={str(in_background).lower()}"
    )
    with FaultyDisk(RunOnDisk(root).store.folder, at=at, fault=refuse(error)) as disk:
        logging.disable(logging.ERROR)
        try:
            code = main(arguments)
        finally:
            logging.disable(logging.NOTSET)
    assert code == ExitCode.FINISHED, f"the training ended with {code}"
    return disk.operations
