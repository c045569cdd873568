"""Requests to stop at any moment of a training: a signal to one process in each phase, a second one, control files."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from megatron_poro.checkpoint import background, saving, writing
from megatron_poro.cli import train
from megatron_poro.data import loading
from megatron_poro.engine import pipeline_engine, sharded_adamw
from megatron_poro.metrics import names
from megatron_poro.models import bloom
from megatron_poro.train import build, control, loop, periodic, processes, run
from megatron_poro.train.exit_code import ExitCode
from tests.faults.tally import Budget, Tally
from tests.integration.toy import TOKENS_PER_STEP, RunOnDisk, ToyCorpora, assert_same_values
from tests.support.live_run import start

CLAIM = (
    "A signal to any one process in any phase lets all processes finish the step, save it, and end with the same exit "
    "code; a second signal changes nothing"
)
STEPS = 12
WORLD = 2
ENOUGH_SECONDS = 300.0
LAYOUTS = (("parallel.tensor=2",), ("parallel.pipeline=2",), ())


@dataclass(frozen=True)
class Phase:
    """A part of a training in which a signal can come.

    Attributes:
        aims: functions, as owner and name, that all processes run in it: the signal comes at one of them.
        calls: it comes at the first to the ``calls``-th call.
        changes: config of the training.
        codes: what all processes end with.
    """

    aims: Sequence[tuple[Any, str]]
    calls: int = 1
    changes: tuple[str, ...] = ()
    codes: ExitCode = ExitCode.STOPPED


WAITING = ("checkpoint.asynchronous=false", "checkpoint.every_steps=1")
BESIDE = ("checkpoint.asynchronous=true", "checkpoint.every_steps=1")

PHASES: dict[str, Phase] = {
    "start-up": Phase(
        [
            (processes, "_meet"),
            (build, "_open_tokenizer"),
            (build, "_open_mixture"),
            (build, "build_engine"),
            (build, "prove_gradients"),
            (build, "_resume"),
        ]
    ),
    "boundary": Phase([(control.Control, "agree")], calls=STEPS - 2),
    "data wait": Phase([(loading.BatchLoader, "load"), (loading.BatchLoader, "_read")], calls=STEPS - 4),
    "forward": Phase([(bloom.BloomBlock, "forward")], calls=2 * (STEPS - 2)),
    "backward": Phase([(torch.autograd, "backward")], calls=2 * (STEPS - 2)),
    "step": Phase(
        [(pipeline_engine.PipelineEngine, "_take_step"), (sharded_adamw.ShardedAdamW, "update")], calls=STEPS - 2
    ),
    "evaluation": Phase([(periodic, "validate")], calls=STEPS - 2, changes=("validation.every_steps=1",)),
    "saving": Phase(
        [
            (saving, "save"),
            (saving, "plan_writing"),
            (saving.CheckpointInMaking, "write"),
            (saving.CheckpointInMaking, "collect"),
            (saving.CheckpointInMaking, "commit"),
        ],
        calls=STEPS - 2,
        changes=WAITING,
    ),
    "save in flight": Phase(
        [
            (background.BackgroundSaver, "start"),
            (background.BackgroundSaver, "advance"),
            (writing.WritePlan, "write"),
        ],
        calls=STEPS - 6,
        changes=BESIDE,
    ),
    "end": Phase([(loop, "save_for_good"), (run.Run, "close")], codes=ExitCode.FINISHED),
}
"""What a signal can meet. At the end of a training there is nothing left to stop: it is finished."""

FILES = ("stop file", "save file")
"""Kinds of trials in which a person makes a control file."""


def campaign(budget: Budget, rng: random.Random, folder: Path, kinds: Sequence[str] = ()) -> Tally:
    """A trial is one training with one request; the kinds take turns, all unless some are named.

    Every fourth signal is followed by another.
    """
    corpora = ToyCorpora.make(folder / "corpora")
    controls: dict[int, RunOnDisk] = {}
    kinds = kinds or [*PHASES, *FILES]
    seconds: list[float] = []

    def trial(number: int) -> str:
        kind, layout = kinds[number % len(kinds)], rng.randrange(len(LAYOUTS))
        if layout not in controls:
            controls[layout] = _control(corpora, folder / f"control_{layout}", LAYOUTS[layout])
        began = time.monotonic()
        ask = _ask_by_file if kind in FILES else _ask_by_signal
        ask(kind, rng, corpora.arguments(folder / str(number), *_settings(LAYOUTS[layout])), folder / str(number))
        seconds.append(time.monotonic() - began)
        found = RunOnDisk(folder / str(number))
        if found.steps():
            assert_same_values(found, controls[layout], found.steps()[-1])
        return kind

    tally = Tally(CLAIM).run(budget, trial)
    if seconds:
        tally.facts["median seconds of a trial"] = round(sorted(seconds)[len(seconds) // 2], 2)
    return tally


def _settings(layout: tuple[str, ...]) -> list[str]:
    return [
        "engine=deepspeed",
        "engine.precision=fp32",
        "engine.truth_check=off",
        "checkpoint.keep_last=1000",
        f"schedule.total_tokens={STEPS * TOKENS_PER_STEP}",
        *layout,
    ]


def _control(corpora: ToyCorpora, root: Path, layout: tuple[str, ...]) -> RunOnDisk:
    """A training that nobody asks anything, with a checkpoint of every step."""
    with start(corpora.arguments(root, *_settings(layout), *WAITING), world=WORLD, folder=root / "logs") as live:
        codes = live.wait(ENOUGH_SECONDS)
        assert codes == [ExitCode.FINISHED] * WORLD, live.output()
    return RunOnDisk(root)


# --- signals ---------------------------------------------------------------------------------------------------------


def _ask_by_signal(kind: str, rng: random.Random, arguments: list[str], root: Path) -> None:
    phase, victim, hits = PHASES[kind], rng.randrange(WORLD), root / "hits"
    (owner, name), call = rng.choice(phase.aims), rng.randint(1, phase.calls)
    number = rng.choice(control.STOP_SIGNALS)
    delay = 0.0 if rng.random() < 0.5 else rng.uniform(0.0, 0.01)
    hits.mkdir(parents=True)

    def prepare(rank: int) -> None:
        _note_hits(hits / str(rank))
        if rank == victim:
            _strike(owner, name, call, number, delay)

    again = None if rng.random() < 0.75 else (rng.uniform(0.0, 0.1), rng.choice([[0], [1], [0, 1]]))
    with start(
        [*arguments, *phase.changes],
        world=WORLD,
        folder=root / "logs",
        prepare=prepare,
        command=train.command,
    ) as live:
        if again is not None:
            live.wait_until(lambda: any(hits.iterdir()), ENOUGH_SECONDS)
            until = time.monotonic() + again[0]
            live.wait_until(lambda: time.monotonic() >= until, ENOUGH_SECONDS)
            live.signal(signal.SIGTERM, again[1])
        codes = live.wait(ENOUGH_SECONDS)
        what = f"{kind}: {number.name} to rank {victim} {delay:.4f} s after call {call} of {name}, again {again}"
        assert codes == [phase.codes] * WORLD, f"{what}: exit codes {codes}\n{live.output()}"
        _require_right_step(kind, hits, RunOnDisk(root), what)


def _require_right_step(kind: str, hits: Path, found: RunOnDisk, what: str) -> None:
    """The step that ran when the first signal was noted is the last one, saved, and the last line of the metrics."""
    at = [int(path.read_text()) for path in hits.iterdir()]
    assert at, f"{what}: no signal was noted"
    saved = found.steps()[-1] if found.steps() else 0
    expected = {"start-up": {0}, "end": {STEPS}}.get(kind, {min(at), min(at) + 1})
    assert saved in expected, f"{what}: noted after step {min(at)}, saved step {saved}"
    _require_lines(found, saved, what)


def _require_lines(found: RunOnDisk, last: int, what: str) -> None:
    lines = [line[names.STEP.key] for line in found.lines()] if (found.folder / "metrics.jsonl").exists() else []
    assert lines == list(range(1, last + 1)), f"{what}: metrics of steps {lines}, saved step {last}"


def _note_hits(path: Path) -> None:
    """Makes this process write down after which step its first signal was noted."""
    fit, note = loop.fit, control.StopRequest._note
    built: list[run.Run] = []

    def noting_fit(one: run.Run) -> ExitCode:
        built.append(one)
        return fit(one)

    def noting(self: control.StopRequest, number: int, frame: FrameType | None) -> None:
        note(self, number, frame)
        if not path.exists():
            partial = path.parent.with_name(f"hit_{path.name}")
            partial.write_text(str(built[0].progress.step if built else 0))
            partial.rename(path)

    loop.fit = noting_fit
    control.StopRequest._note = noting  # type: ignore[method-assign]


def _strike(owner: Any, name: str, call: int, number: signal.Signals, delay: float) -> None:
    """Makes this process get a signal at some call of a function, or a little later."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def kill() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), number)

    def struck(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            if delay:
                threading.Thread(target=kill, daemon=True).start()
            else:
                os.kill(os.getpid(), number)
        return original(*arguments, **options)

    setattr(owner, name, struck)


# --- control files ---------------------------------------------------------------------------------------------------


def _ask_by_file(kind: str, rng: random.Random, arguments: list[str], root: Path) -> None:
    found, name = RunOnDisk(root), kind.removesuffix(" file")
    file = found.folder / "control" / name
    after = rng.randint(1, STEPS - 5)  # before the first step there is nothing to save
    with start(arguments, world=WORLD, folder=root / "logs") as live:
        live.wait_until(lambda: _lines_written(found) >= after and file.parent.is_dir(), ENOUGH_SECONDS)
        file.touch()
        codes = live.wait(ENOUGH_SECONDS)
        assert codes == [ExitCode.FINISHED] * WORLD, f"{kind} after step {after}: exit codes {codes}\n{live.output()}"
    assert not file.exists(), f"{kind}: it is still there"
    last = STEPS if kind == "save file" else found.steps()[-1]
    assert after <= found.steps()[0] <= after + 4, f"{kind} after step {after}: saved {found.steps()}"
    _require_lines(found, last, f"{kind} after step {after}")


def _lines_written(found: RunOnDisk) -> int:
    path = found.folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
