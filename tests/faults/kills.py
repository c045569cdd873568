"""SIGKILL to one or all processes of a training at random times, and the same command again until it is done."""

import random
import signal
import time
from pathlib import Path

from megatron_poro.train.exit_code import ExitCode
from tests.faults.tally import Budget, Tally
from tests.integration.toy import TOKENS_PER_STEP, RunOnDisk, ToyCorpora, assert_same_values
from tests.support.live_run import start

CLAIM = (
    "A training that is killed at random moments and started again ends with the masters, the moments and every logged "
    "loss of a training that was not, bit for bit"
)
STEPS = 40
WORLD = 2
LAYOUTS = (("parallel.tensor=2",), ("parallel.pipeline=2",), ())


def campaign(budget: Budget, rng: random.Random, folder: Path) -> Tally:
    """A trial is one training with one to eight kills. Its kind is the layout and how many processes were killed."""
    corpora = ToyCorpora.make(folder / "corpora")
    controls: dict[int, tuple[RunOnDisk, float]] = {}
    kills = 0

    def trial(number: int) -> str:
        nonlocal kills
        layout, root = rng.randrange(len(LAYOUTS)), folder / f"trial_{number}"
        if layout not in controls:
            began = time.monotonic()
            control, _ = _train(corpora, folder / f"control_{layout}", LAYOUTS[layout])
            controls[layout] = control, time.monotonic() - began
        control, seconds = controls[layout]
        alone = rng.random() < 0.5
        # from start-up, loading, all steps and saves, and the end of a training that is not killed
        for life in range(rng.randint(1, 8)):
            victims = [rng.randrange(WORLD)] if alone else list(range(WORLD))
            kills += _live_and_die(corpora, root, LAYOUTS[layout], life, rng.uniform(0.0, seconds), victims)
        run, codes = _train(corpora, root, LAYOUTS[layout])
        assert codes == [ExitCode.FINISHED] * WORLD, f"exit codes {codes} after the kills"
        assert_same_values(control, run, STEPS)
        assert run.curve() == control.curve(), "the logged losses are not those of the control"
        return f"{' '.join(LAYOUTS[layout]) or 'parallel.data=2'}, {'one process' if alone else 'all processes'} killed"

    tally = Tally(CLAIM).run(budget, trial)
    tally.facts["kills that hit a living process"] = kills
    return tally


def _arguments(corpora: ToyCorpora, root: Path, layout: tuple[str, ...]) -> list[str]:
    return corpora.arguments(
        root,
        "engine=deepspeed",
        "engine.precision=bf16",
        f"schedule.total_tokens={STEPS * TOKENS_PER_STEP}",
        "checkpoint.every_steps=3",
        "validation.every_steps=7",
        f"export.every_tokens={10 * TOKENS_PER_STEP}",
        *layout,
    )


def _train(corpora: ToyCorpora, root: Path, layout: tuple[str, ...]) -> tuple[RunOnDisk, list[int]]:
    with start(_arguments(corpora, root, layout), world=WORLD, folder=root / "logs_last") as live:
        codes = live.wait(120.0)
    return RunOnDisk(root), codes


def _live_and_die(
    corpora: ToyCorpora, root: Path, layout: tuple[str, ...], life: int, after_seconds: float, victims: list[int]
) -> int:
    """Starts the training, kills processes after some seconds; returns how many were alive to be killed."""
    with start(_arguments(corpora, root, layout), world=WORLD, folder=root / f"logs_{life}") as live:
        deadline = time.monotonic() + after_seconds
        live.wait_until(lambda: time.monotonic() >= deadline)
        alive = [rank for rank in victims if rank not in live.poll()]
        live.signal(signal.SIGKILL, alive)
        # the end of the block ends the others, as a launcher does
    return len(alive)
