"""A process that stops getting on, in any phase and in several ways, and a process that dies: who notices, and when."""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_poro.data.loading import BatchLoader
from megatron_poro.engine.pipeline_engine import PipelineEngine
from megatron_poro.engine.sharded_adamw import ShardedAdamW
from megatron_poro.models.bloom import BloomBlock
from megatron_poro.parallel import linear
from megatron_poro.train import build, checkpointing, control
from megatron_poro.train.exit_code import ExitCode
from tests.faults.tally import Budget, Tally
from tests.integration.toy import ToyCorpora
from tests.support.live_run import LiveRun, start

CLAIM = (
    "When one process sleeps, loops, is stopped, leaves out a communication call, or dies, in any phase, all processes "
    "end within the timeout and 5 s (5 s after a death) with a status that is not 0, and the one at fault is named"
)
HANG_SECONDS = 3.0
GRACE_SECONDS = 5.0
WORLD = 4
LAYOUT = ("parallel.tensor=2", "parallel.pipeline=2")
FAULTY_CALL = 3
"""In which call a fault strikes: late enough that the first step is done."""


class Way(str, Enum):
    """How a process stops getting on."""

    SLEEP = "sleep"
    LOOP = "loop"
    STOP = "SIGSTOP"
    KILL = "SIGKILL"
    LOST = "lost collective"


@dataclass(frozen=True)
class Phase:
    """A part of a run, and a function that is called in it.

    Attributes:
        name: for counts.
        owner: where the function is an attribute.
        function: name of the attribute.
        call: in which call the fault strikes.
    """

    name: str
    owner: Any
    function: str
    call: int = FAULTY_CALL


PHASES = (
    Phase("start-up", build, "build_engine", call=1),
    Phase("data", BatchLoader, "load", call=FAULTY_CALL + 2),
    Phase("forward", BloomBlock, "forward", call=40),
    Phase("backward", linear._Linear, "backward", call=40),
    Phase("optimizer step", ShardedAdamW, "update"),
    Phase("boundary", control.Control, "agree", call=FAULTY_CALL + 2),
    Phase("validation", PipelineEngine, "eval_step"),
    Phase("saving", checkpointing, "_state"),
)


@dataclass(frozen=True)
class Fault:
    """A process that goes wrong in a phase."""

    way: Way
    phase: Phase
    rank: int

    @property
    def name(self) -> str:
        """For counts."""
        return f"{self.way.value} in {self.phase.name}"

    def inject(self, sign: Path) -> None:
        """Puts the fault into this process.

        Args:
            sign: a file that is made when the fault strikes.
        """
        original = getattr(self.phase.owner, self.phase.function)
        calls = 0

        def faulty(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.phase.call:
                sign.touch()
                self._strike()
            return original(*arguments, **options)

        faulty_static = staticmethod(faulty) if self.phase.function == "backward" else faulty
        setattr(self.phase.owner, self.phase.function, faulty_static)

    def _strike(self) -> None:
        match self.way:
            case Way.SLEEP:
                time.sleep(3600)
            case Way.LOOP:
                while True:
                    pass
            case Way.STOP:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Way.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Way.LOST:
                _lose_next_collective()


def _lose_next_collective() -> None:
    original: Callable[..., Any] = dist.all_reduce

    def lost(*arguments: Any, **options: Any) -> None:
        dist.all_reduce = original

    dist.all_reduce = lost  # type: ignore[assignment]


def campaign(budget: Budget, rng: random.Random, folder: Path) -> Tally:
    """A trial is one training with one fault. Its kind is the fault and the phase."""
    corpora = ToyCorpora.make(folder / "corpora")
    slowest = dict.fromkeys(Way, 0.0)
    unnamed = 0

    def trial(number: int) -> str:
        nonlocal unnamed
        fault = Fault(rng.choice(list(Way)), rng.choice(PHASES), rng.randrange(WORLD))
        seconds, named = judge(corpora, folder / f"trial_{number}", fault)
        slowest[fault.way] = max(slowest[fault.way], seconds)
        unnamed += not named
        return fault.name

    tally = Tally(CLAIM).run(budget, trial)
    tally.facts |= {f"slowest end after {way.value}, s": round(seconds, 1) for way, seconds in slowest.items()}
    tally.facts["lost collectives whose process was not named"] = unnamed
    return tally


def judge(corpora: ToyCorpora, root: Path, fault: Fault) -> tuple[float, bool]:
    """Trains with a fault and looks at how the processes end.

    Returns:
        Seconds from the fault to the end of the last process, and whether the one at fault was named.
    """
    # a death must be noticed without the help of any timeout
    patience = 60.0 if fault.way is Way.KILL else HANG_SECONDS
    arguments = corpora.arguments(
        root,
        "engine=deepspeed",
        "engine.precision=fp32",
        "engine.truth_check=off",
        "schedule.total_tokens=1M",
        "validation.every_steps=2",
        "checkpoint.every_steps=2",
        f"guards.hang_seconds={patience}",
        f"guards.hang_startup_seconds={patience if fault.phase is PHASES[0] else 60.0}",
        *LAYOUT,
    )
    sign = root / "fault"

    def prepare(rank: int) -> None:
        if rank == fault.rank:
            fault.inject(sign)

    root.mkdir(parents=True)
    with start(arguments, world=WORLD, folder=root / "logs", prepare=prepare) as live:
        live.wait_until(sign.exists, 120.0)
        began = time.monotonic()
        codes = live.wait(60.0)
        seconds = time.monotonic() - began
    limit = GRACE_SECONDS if fault.way is Way.KILL else HANG_SECONDS + GRACE_SECONDS
    assert all(codes), f"exit codes {codes}"
    assert seconds <= limit, f"the last process ended {seconds:.1f} s after the fault, exit codes {codes}"
    named = named_ranks(live)
    told = fault.rank in named
    # a process that leaves out a call goes on as if nothing was, and what it does next may be what looks odd elsewhere
    assert told or fault.way is Way.LOST, f"rank {fault.rank} was at fault, {named} were named:\n{live.output()}"
    expected = ExitCode.LOST_PEER if fault.way is Way.KILL else ExitCode.HUNG
    others = {code for rank, code in enumerate(codes) if rank != fault.rank}
    assert fault.way is Way.LOST or others == {expected}, f"exit codes {codes}"
    return seconds, told


def named_ranks(live: LiveRun) -> list[int]:
    """The ranks that the processes named as the odd one or as gone."""
    told = live.output()
    return [int(rank) for rank in re.findall(r"rank (\d+) \(host [^)]*\)(?: is the odd one|[^\n]* ended before)", told)]
