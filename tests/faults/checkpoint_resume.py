"""Resuming from every step of a run: each continuation ends with the same bits as the run that was never stopped."""

import logging
import random
import shutil
from pathlib import Path

import torch

from megatron_poro.cli.train import main
from megatron_poro.train.exit_code import ExitCode
from tests.faults.tally import Budget, Tally
from tests.integration.toy import TOKENS_PER_STEP, RunOnDisk, ToyCorpora

CLAIM = (
    "A run that resumes from the checkpoint of any of its steps, written in the background, ends with every master, "
    "moment and logged number of the run that was never interrupted, bit for bit"
)


def campaign(budget: Budget, rng: random.Random, folder: Path, *, steps: int = 200) -> Tally:
    """One run that saves at each of its steps; a trial continues from one of them to the end. In a drawn order."""
    corpora = ToyCorpora.make(folder / "corpora")
    shape = (
        f"schedule.total_tokens={steps * TOKENS_PER_STEP}",
        "model.hidden_dropout=0.1",
        "validation.every_steps=50",
    )
    _train(corpora.arguments(folder / "whole", *shape, "checkpoint.every_steps=1", f"checkpoint.keep_last={steps}"))
    whole = RunOnDisk(folder / "whole")
    assert whole.steps() == list(range(1, steps + 1)), f"steps {whole.steps()} are saved"
    expected, curve = whole.values(steps), whole.curve()
    order = rng.sample(range(1, steps), steps - 1)

    def trial(number: int) -> str:
        at = order[number % len(order)]
        part = RunOnDisk(folder / f"from_{at}")
        shutil.copytree(whole.store.path(at), part.store.path(at))
        _train(corpora.arguments(folder / f"from_{at}", *shape))
        found = part.values(steps)
        assert found.keys() == expected.keys()
        different = [key for key in expected if not torch.equal(found[key], expected[key])]
        assert different == [], f"from step {at}: {different}"
        assert part.curve() == curve[at:], f"from step {at} other numbers are logged"
        shutil.rmtree(part.folder.parent)
        return f"from steps {at // 50 * 50} to {at // 50 * 50 + 49}"

    tally = Tally(CLAIM).run(budget, trial)
    tally.facts["steps of the run"] = steps
    tally.facts["steps resumed from"] = min(tally.trials, len(order))
    return tally


def _train(arguments: list[str]) -> None:
    logging.disable(logging.ERROR)
    try:
        code = main(arguments)
    finally:
        logging.disable(logging.NOTSET)
    assert code == ExitCode.FINISHED, f"the training ended with {code}"
