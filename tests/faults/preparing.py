"""``poro data prepare`` killed between any two of its writes, and given again until it is done."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_poro.cli.data import main
from tests.faults.tally import Budget, Tally
from tests.support.live_run import start
from tests.unit.data_prep import raw_corpora

CLAIM = (
    "poro data prepare that is killed at random writes and given again ends with the tokenizer, datasets and report of "
    "one that was not, byte for byte"
)
RECIPES = Path(__file__).parents[2] / "data_prep" / "recipes" / "poro_34b"
ENOUGH_SECONDS = 300.0


def campaign(budget: Budget, rng: random.Random, folder: Path) -> Tally:
    """A trial is one preparation with one to four kills; its kind is how many."""
    raw_corpora.write_all(folder / "raw", documents=30)
    whole, writes = folder / "whole", folder / "writes"
    _prepare(folder / "raw", whole, count=writes)
    expected, last = files(whole), int(writes.read_text())
    deaths = 0

    def trial(number: int) -> str:
        nonlocal deaths
        output, kills = folder / f"trial_{number}", rng.randint(1, 4)
        for _ in range(kills):
            # a later start has less left to write: a number that it does not reach lets it end
            deaths += _prepare(folder / "raw", output, kill_at=rng.randint(1, last // kills))
        _prepare(folder / "raw", output)
        found = files(output)
        assert found.keys() == expected.keys(), f"other files: {sorted(found.keys() ^ expected.keys())}"
        different = [name for name in expected if found[name] != expected[name]]
        assert different == [], f"other bytes in {different}"
        shutil.rmtree(output)
        return f"{kills} starts to be killed"

    tally = Tally(CLAIM).run(budget, trial)
    tally.facts["kills"] = deaths
    tally.facts["writes of a preparation"] = last
    return tally


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _prepare(raw: Path, output: Path, *, kill_at: int | None = None, count: Path | None = None) -> bool:
    """Runs the command; it dies at its write ``kill_at``, or notes in a file how many writes there were.

    Returns whether it died.

    What counts is what makes a file safe and what gives it its name: between any two of these a killed command leaves
    another state on the disk.
    """
    words = [
        "experiment=smoke_cpu",
        "model.vocab_size=384",
        f"data.folder={output / 'data'}",
        f"tokenizer.path={output / 'tokenizer'}",
        f"--recipes={RECIPES}",
        f"--raw={raw}",
        "--workers=1",
    ]
    writes = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal writes
            writes += 1
            if writes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counting

    def command(arguments: Any) -> int:
        os.fsync, os.replace = counted(os.fsync), counted(os.replace)
        code = main(["prepare", *arguments])
        if count is not None:
            count.write_text(str(writes))
        return code

    with start(words, world=1, folder=output.with_name(f"{output.name}.logs"), command=command) as live:
        (code,) = live.wait(ENOUGH_SECONDS)
        assert code == 0 or (kill_at is not None and code == -signal.SIGKILL), f"exit code {code}: {live.output()}"
    return code != 0
