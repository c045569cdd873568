"""The main job from end to end on this machine, in minutes: what ``make smoke`` runs.

It types the commands that a user would type, shows each of them, and judges what they leave on disk: text becomes a
mixture of tokens, four processes train on it (tensor 2 x pipeline 2), are stopped half-way and started again, the
milestones become Hugging Face models that are proven equal, and the last one writes a line. The job fails if the loss
did not fall, if the second half did not go on exactly where the first one ended, or if an export is not the trained
model. Nothing here knows more than the commands print and write.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
WORK = Path("work/smoke")
EXPERIMENT = "smoke_cpu"
PROCESSES = 4
STOP_STEP = 40
VOCAB_SIZE = 4096
PROMPT = "Suomi on"
MADE = ("corpora", "tokenizer", "data", "runs")

SOURCES = {
    "slimpajama": "text",
    "finnish": "text",
    "tatoeba_en_fi": "text",
    "tatoeba_fi_en": "text",
    "starcoder": "content",
    "gutenberg": "text",
}
"""Sources of the mixture, and what the text is called in their records."""

LEAST_FALL = 1.0
LAST_STEPS = 10
"""Nats per token by which the mean loss of the last steps must lie below that of the first step."""

PROGRAMS = {
    "python": [sys.executable],
    "poro": [sys.executable, "-m", "megatron_poro.cli.main"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}
"""How the commands that are shown are started: by this interpreter, wherever its scripts are."""


class SmokeFailure(Exception):
    """The job did not do what it is there to show; the message says which part."""


@dataclass
class Job:
    """Runs commands in the checkout, one phase after the other, and keeps the time.

    Attributes:
        work: folder for everything the job makes, relative to the checkout.
        console: where headings and commands go.
    """

    work: Path
    console: Console
    started: float = field(default_factory=time.monotonic)
    phases: int = 0

    def phase(self, title: str) -> None:
        """Prints a heading with the time since the start."""
        self.phases += 1
        seconds = time.monotonic() - self.started
        self.console.print(f"\n[bold]{self.phases}. {title}[/bold]  [dim]({seconds:.0f} s)[/dim]", highlight=False)

    def run(self, command: str) -> None:
        """Runs a command as a user would type it; its output goes straight to the terminal.

        Raises:
            SmokeFailure: if it ends with another status than 0.
        """
        self._show(command)
        self._require(command, subprocess.run(_words(command), cwd=ROOT, env=_environment()).returncode)

    def run_side_by_side(self, commands: Sequence[str]) -> None:
        """Runs independent commands, as many at once as there are cores; shows each with its output when it ends.

        Raises:
            SmokeFailure: if one ends with another status than 0.
        """

        def run(command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                _words(command),
                cwd=ROOT,
                env=_environment(),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for command, result in zip(commands, pool.map(run, commands), strict=True):
                self._show(command)
                print(result.stdout, end="", flush=True)
                self._require(command, result.returncode)

    def _show(self, command: str) -> None:
        self.console.print(f"$ {command}", style="cyan", markup=False, highlight=False, soft_wrap=True)

    @staticmethod
    def _require(command: str, status: int) -> None:
        if status != 0:
            raise SmokeFailure(f"`{command}` ended with status {status}.")


@dataclass(frozen=True)
class Curve:
    """What a training run wrote about its steps.

    Attributes:
        steps: the steps that have a line, in the order of the file.
        losses: training loss at each.
        validation: validation loss where there is one, in order.
        tokens_per_second: of each line.
    """

    steps: list[int]
    losses: list[float]
    validation: list[float]
    tokens_per_second: list[float]

    @classmethod
    def read(cls, metrics: bytes) -> "Curve":
        """Reads the text of a ``metrics.jsonl``."""
        lines: list[dict[str, Any]] = [json.loads(line) for line in metrics.splitlines()]
        return cls(
            steps=[line["train/step"] for line in lines],
            losses=[_number(line.get("train/loss")) for line in lines],
            validation=[_number(line["validation/loss"]) for line in lines if "validation/loss" in line],
            tokens_per_second=[line["perf/tokens_per_second"] for line in lines if "perf/tokens_per_second" in line],
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns 0 if all of it is as it must be."""
    arguments = _parser().parse_args(argv)
    console = Console(soft_wrap=True)
    try:
        make_room(ROOT / arguments.work, fresh=arguments.fresh)
        _smoke(Job(arguments.work, console))
    except SmokeFailure as failure:
        console.print(f"\nsmoke: {failure}", style="bold red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch.smoke", description="The main job, end to end.")
    parser.add_argument(
        "--work", type=Path, default=WORK, metavar="DIR", help=f"where all of it goes (default: {WORK})"
    )
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier job left there")
    return parser


def _smoke(job: Job) -> None:
    work, run = job.work, job.work / "runs" / EXPERIMENT
    train = f"torchrun --standalone --nproc-per-node {PROCESSES} -m launch.train experiment={EXPERIMENT}"
    if work != WORK:  # the experiment's own paths are those of the default
        train += f" run.root={work}/runs data.folder={work}/data tokenizer.path={work}/tokenizer"

    job.phase("Text: six sources from this Python's library and the project's own Finnish")
    job.run(f"python -m data_prep.sample_corpora --output {work}/corpora")

    job.phase("A tokenizer of 4,096 tokens")
    inputs = " ".join(f"{work}/corpora/{source}.train.jsonl:{key}" for source, key in SOURCES.items())
    job.run(f"poro tokenizer train --vocab-size {VOCAB_SIZE} --output {work}/tokenizer --overwrite --input {inputs}")

    job.phase("Tokens: .bin and .idx for training and validation")
    job.run_side_by_side(
        [
            f"poro data tokenize --input {work}/corpora/{source}.{part}.jsonl --key {key} "
            f"--tokenizer {work}/tokenizer --output {work}/data/{source}.{part} --workers 1 --overwrite"
            for source, key in SOURCES.items()
            for part in ("train", "validation")
        ]
    )

    job.phase(f"Training on {PROCESSES} processes, stopped after step {STOP_STEP}")
    job.run(f"{train} run.stop_after_steps={STOP_STEP}")
    first_half = _metrics(run)

    job.phase("The same command goes on to the end")
    job.run(train)
    curve = judge_curve(first_half, _metrics(run), stop_step=STOP_STEP)

    job.phase("Milestones as Hugging Face models, each proven equal to its checkpoint")
    job.run(f"poro ckpt verify {run}")
    job.run(f"poro export {run} --milestones")
    reports = judge_exports(ROOT / run / "exports", last_step=curve.steps[-1])

    job.phase("A line from the last export")
    model = f"{run}/exports/{list(reports)[-1]}"
    job.run(f"poro generate {model} {shlex.quote(PROMPT)} --max-new-tokens 40 --temperature 0.7")

    job.console.print()
    job.console.print(summary(work, curve, reports, seconds=time.monotonic() - job.started))


def make_room(work: Path, *, fresh: bool) -> None:
    """Makes sure that no part of an earlier job is in the way; removes only what a job makes.

    Raises:
        SmokeFailure: if there is one and ``fresh`` does not allow to remove it.
    """
    for name in MADE:
        if (work / name).exists():
            if not fresh:
                raise SmokeFailure(f"{work / name} is there from an earlier job. Give --fresh to replace it.")
            shutil.rmtree(work / name)


def judge_curve(first_half: bytes, both: bytes, *, stop_step: int) -> Curve:
    """Checks what the two halves of a run wrote to ``metrics.jsonl``.

    Args:
        first_half: the file when the run was stopped.
        both: the file at the end.
        stop_step: step after which the run was stopped.

    Raises:
        SmokeFailure: if the second half did not continue at the next step, or the loss did not fall.
    """
    before, curve = Curve.read(first_half), Curve.read(both)
    if not before.steps or before.steps[-1] != stop_step:
        raise SmokeFailure(f"the first half ended after step {before.steps[-1:]}, it was to stop after {stop_step}.")
    if not both.startswith(first_half):
        raise SmokeFailure("the second half did not go on from the first: lines of steps before the stop have changed.")
    if curve.steps != list(range(1, len(curve.steps) + 1)) or curve.steps[-1] <= stop_step:
        raise SmokeFailure(f"metrics.jsonl must have one line per step from 1 past {stop_step}, it has {curve.steps}.")
    if not all(math.isfinite(loss) for loss in [*curve.losses, *curve.validation]):
        raise SmokeFailure("a loss is not finite.")
    last = mean(curve.losses[-LAST_STEPS:])
    if not last <= curve.losses[0] - LEAST_FALL:
        raise SmokeFailure(f"the loss went from {curve.losses[0]:.3f} to {last:.3f}, it must fall by {LEAST_FALL:g}.")
    return curve


def judge_exports(exports: Path, *, last_step: int) -> dict[str, dict[str, Any]]:
    """Reads the report of each export; oldest first, by label.

    Raises:
        SmokeFailure: if there are none, one was not proven, or the last is not of the run's last step.
    """
    read = {path.parent.name: json.loads(path.read_text()) for path in exports.glob("*/export_report.json")}
    reports: dict[str, dict[str, Any]] = dict(sorted(read.items(), key=lambda item: int(item[1]["checkpoint"]["step"])))
    if not reports:
        raise SmokeFailure(f"{exports} holds no export.")
    for label, report in reports.items():
        if not (report["parity"] or {}).get("met"):
            raise SmokeFailure(f"export {label} is not proven equal to its checkpoint: {report['parity']}.")
    found = list(reports.values())[-1]["checkpoint"]["step"]
    if found != last_step:
        raise SmokeFailure(f"the newest export is of step {found}, the run ended after step {last_step}.")
    return reports


def summary(work: Path, curve: Curve, reports: dict[str, dict[str, Any]], *, seconds: float) -> Table:
    """The table a user is left with."""
    parity = [report["parity"] for report in reports.values()]
    run = work / "runs" / EXPERIMENT
    table = Table(show_header=False, title="smoke: all of it works", title_justify="left", title_style="bold green")
    table.add_row("loss", f"{curve.losses[0]:.3f} at step 1, {curve.losses[-1]:.3f} at step {curve.steps[-1]}")
    if curve.validation:
        table.add_row("validation loss", f"{curve.validation[0]:.3f} first, {curve.validation[-1]:.3f} last")
    table.add_row("resumed", f"after step {STOP_STEP}, every step once")
    table.add_row("speed", f"{median(curve.tokens_per_second):,.0f} tokens/s on {PROCESSES} processes (median)")
    table.add_row(
        "parity with transformers",
        f"largest logit difference {max(one['max_abs_difference'] for one in parity):.2g}, "
        f"argmax agrees at {min(one['argmax_agreement'] for one in parity):.2%}",
    )
    table.add_row("metrics", f"{run}/metrics.jsonl")
    table.add_row("checkpoints", f"{run}/checkpoints")
    table.add_row("Hugging Face models", "\n".join(f"{run}/exports/{label}" for label in reports))
    table.add_row("time", f"{seconds:.0f} s")
    return table


def _metrics(run: Path) -> bytes:
    path = ROOT / run / "metrics.jsonl"
    if not path.exists():
        raise SmokeFailure(f"{run}/metrics.jsonl is missing: the training run wrote no metrics.")
    return path.read_bytes()


def _words(command: str) -> list[str]:
    program, *rest = shlex.split(command)
    return [*PROGRAMS[program], *rest]


def _environment() -> dict[str, str]:
    """The user's environment, kept to the CPU: the job is the same on every machine, with a GPU or without."""
    ours = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **ours}


def _number(value: Any) -> float:
    """JSON has no nan: a loss that was not finite is null."""
    return math.nan if value is None else float(value)


if __name__ == "__main__":
    sys.exit(main())
