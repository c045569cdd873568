"""NaN, infinities and spikes at any place of a step, on any process: what a run makes of them."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.lineage import Lineage, RunRecord, StepRange
from megatron_poro.train.skipped import SKIPPED_FOLDER
from tests.faults.poisons import SPIKE, TRANSIENT, Place, Poison
from tests.faults.tally import Budget, Tally
from tests.integration.toy import BATCH, TOKENS_PER_STEP, RunOnDisk, ToyCorpora, assert_same_values
from tests.support.live_run import start

CLAIM = (
    "A value that is not finite, or a spike, on any one process is refused by all in the same step, leaves no NaN in "
    "a checkpoint or in the guard's window, and the run ends bit for bit as one that was told in advance to leave out "
    "those steps; where it cannot, it ends with a named error"
)
STEPS = 24
WINDOW = 12
ROW = 3
WORLD = 2
LAYOUTS = (("parallel.tensor=2",), ("parallel.pipeline=2",), ("parallel.data=2",))

NAMED = (ExitCode.BAD_INPUT, ExitCode.DIVERGED, ExitCode.REPLICAS_DIFFER)
"""How a run may end whose values were spoilt for good before a guard could know."""


def campaign(budget: Budget, rng: random.Random, folder: Path) -> Tally:
    """A trial is one training with one fault. Its kind is the fault and the layout."""
    corpora = ToyCorpora.make(folder / "corpora")
    outcomes = {"finished": 0, "ended with a named error": 0}

    def trial(number: int) -> str:
        layout = (*rng.choice(LAYOUTS), f"engine.precision={rng.choice(('bf16', 'fp32'))}")
        fault = draw(rng)
        victim = rng.randrange(WORLD)
        finished = judge(corpora, folder / f"trial_{number}", layout, fault, victim)
        outcomes["finished" if finished else "ended with a named error"] += 1
        return f"{fault.name}, {layout[0]}"

    tally = Tally(CLAIM).run(budget, trial)
    tally.facts.update(outcomes)
    return tally


def draw(rng: random.Random) -> Poison:
    """A fault at a random step, for one step or for as many as a run stands."""
    place = rng.choice(list(Place))
    step = rng.randint(WINDOW + 1, STEPS - ROW - 1)
    factors = [math.nan, math.inf]
    if place in (Place.LOSS, Place.GRADIENT):
        factors.append(SPIKE)
    length = ROW if place in TRANSIENT and rng.random() < 0.3 else 1
    return Poison(place, rng.choice(factors), tuple(range(step, step + length)), BATCH)


def judge(corpora: ToyCorpora, root: Path, layout: Sequence[str], fault: Poison, victim: int) -> bool:
    """Trains with a fault on one process and holds the run against one that was told what to leave out.

    Returns:
        Whether the run finished; otherwise it ended with an error that has a name.
    """
    codes = train(corpora, root / "poisoned", layout, fault, victim)
    run = RunOnDisk(root / "poisoned")
    assert len(set(codes)) == 1, f"exit codes differ: {codes}"
    for step in run.steps():
        assert all(bool(values.isfinite().all()) for values in run.values(step).values()), f"NaN in step {step}"
        guard = json.loads((run.store.path(step) / "meta.json").read_text())["guard"]
        assert all(map(math.isfinite, (*guard["losses"], *guard["grad_norms"]))), f"NaN in the window of step {step}"
    if codes[0] != ExitCode.FINISHED:
        assert fault.place not in TRANSIENT, f"a fault that goes away ended the run with {codes[0]}"
        assert codes[0] in NAMED, f"exit code {codes[0]}"
        return False
    record = RunRecord.read(run.folder / "run.json")
    skipped = json.loads((run.store.path(STEPS) / "meta.json").read_text())["skipped_steps"]
    reached = (run.folder / SKIPPED_FOLDER).exists()  # a process that computes no loss cannot spoil one
    assert reached or not skipped, f"skipped {skipped} without a reason"
    if reached and fault.place in TRANSIENT:
        assert set(fault.steps) <= set(skipped), f"faults in {fault.steps}, skipped {skipped}"
        assert (record.lineage == 1) == (len(fault.steps) >= ROW), f"{record.lineage} rewinds"
    if fault.place in TRANSIENT and record.lineage == 0:
        assert set(skipped) <= set(fault.steps), f"faults in {fault.steps}, skipped {skipped}"
    told = RunOnDisk(root / "told")
    tell_in_advance(told.folder, skipped)
    assert train(corpora, root / "told", layout) == [ExitCode.FINISHED] * WORLD
    assert_same_values(told, run, STEPS)
    assert run.curve() == told.curve(), "the logged losses are not those of the run that was told"
    return True


def train(
    corpora: ToyCorpora, root: Path, layout: Sequence[str], fault: Poison | None = None, victim: int = 0
) -> list[int]:
    """One training, with a fault on one of its processes; exit codes in rank order."""
    arguments = corpora.arguments(
        root,
        "engine=deepspeed",
        "engine.microbatch_samples=2",
        "engine.truth_check=off",
        f"schedule.total_tokens={STEPS * TOKENS_PER_STEP}",
        "checkpoint.every_steps=5",
        "checkpoint.keep_last=9",
        f"guards.spike_window_steps={WINDOW}",
        f"guards.max_skips_in_row={ROW}",
        "guards.rewind_margin_steps=1",
        *layout,
    )

    def prepare(rank: int) -> None:
        if fault is not None and rank == victim:
            fault.inject()

    with start(arguments, world=WORLD, folder=root / "logs", prepare=prepare) as live:
        return live.wait(180.0)


def tell_in_advance(folder: Path, steps: Sequence[int]) -> None:
    """Makes a run folder whose run will not learn from some steps."""
    folder.mkdir(parents=True)
    record = replace(RunRecord.new(), skip=tuple(StepRange(step, step) for step in steps))
    Lineage(folder, record, writes=True).write()
