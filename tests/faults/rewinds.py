"""Runs that are taken back again and again, also by commands that are killed, and go on each time."""

import json
import os
import random
from pathlib import Path
from typing import Any

from megatron_poro.cli import rewind
from megatron_poro.metrics import names
from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.lineage import read_record
from tests.faults.tally import Budget, Tally
from tests.integration.toy import TOKENS_PER_STEP, RunOnDisk, ToyCorpora, assert_same_values
from tests.support.deaths import DEAD, die_at, in_child
from tests.support.live_run import start

CLAIM = (
    "A run that was taken back to random steps ends bit for bit where it would have; every checkpoint and every line "
    "of metrics that ever was is kept, and each branch is monotone"
)
STEPS = 16


def campaign(budget: Budget, rng: random.Random, folder: Path) -> Tally:
    """A trial is one run with one to four rewinds. Its kind says whether the last command was killed on its way."""
    corpora = ToyCorpora.make(folder / "corpora")
    control = RunOnDisk(folder / "control")
    _train(corpora, folder / "control", STEPS)
    rewinds = 0

    def trial(number: int) -> str:
        nonlocal rewinds
        root, is_killed = folder / str(number), False
        run, at, seen = RunOnDisk(root), 0, _Seen()
        for count in range(1, rng.randint(1, 4) + 1):
            at = rng.randint(at + 1, STEPS)
            _train(corpora, root, at)
            seen.look(run.folder)
            to = rng.choice([0, *(step for step in run.steps() if step < STEPS)])
            is_killed = rng.random() < 0.5
            if is_killed:
                _rewind_and_die(run, to, rng.randrange(60))
            record = read_record(run.folder)
            if record is not None and record.lineage < count:
                assert in_child(lambda: _rewind(run, to)) == 0  # noqa: B023  called at once
            at = to
            rewinds += 1
        _train(corpora, root, STEPS)
        assert_same_values(run, control, STEPS)
        assert run.curve() == control.curve()
        seen.require_kept(run.folder)
        return "killed rewind" if is_killed else "whole rewind"

    tally = Tally(CLAIM).run(budget, trial)
    tally.facts["rewinds"] = rewinds
    return tally


def _train(corpora: ToyCorpora, root: Path, steps: int) -> None:
    arguments = corpora.arguments(
        root,
        f"schedule.total_tokens={STEPS * TOKENS_PER_STEP}",
        f"run.stop_after_steps={steps}",
        "checkpoint.every_steps=3",
        "checkpoint.keep_last=100",
    )
    with start(arguments, world=1, folder=root / "logs") as live:
        codes = live.wait(300.0)
        assert codes == [ExitCode.FINISHED], live.output()


def _rewind(run: RunOnDisk, to: int) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        assert rewind.main([str(run.folder), "--to", str(to)]) == 0


def _rewind_and_die(run: RunOnDisk, to: int, event: int) -> None:
    def body() -> None:
        die_at(event, run.folder)
        _rewind(run, to)

    assert in_child(body) in (0, DEAD)


class _Seen:
    """All that a run ever had on disk that a rewind must keep."""

    def __init__(self) -> None:
        self._kept: set[tuple[Any, ...]] = set()

    def look(self, folder: Path) -> None:
        self._kept |= _contents(folder)

    def require_kept(self, folder: Path) -> None:
        now = _contents(folder)
        assert self._kept <= now, f"{len(self._kept - now)} of {len(self._kept)} are lost"
        for path in [folder / "metrics.jsonl", *folder.glob("abandoned/*/metrics.jsonl")]:
            steps = [json.loads(line)[names.STEP.key] for line in path.read_text().splitlines()]
            assert steps == sorted(set(steps)), f"{path}: {steps}"


def _contents(folder: Path) -> set[tuple[Any, ...]]:
    """Checkpoints by what is in their ``meta.json``, and lines of metrics."""
    states = {("checkpoint", path.read_text()) for path in folder.rglob("meta.json")}
    return states | {("line", line) for path in folder.rglob("metrics.jsonl") for line in path.read_text().splitlines()}
