"""A run with three exported milestones, small enough to publish in a second."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from megatron_poro.cli.main import main as poro
from tests.integration.toy import TOKENS_PER_STEP, ToyCorpora
from tests.support.deaths import in_child

STEPS_PER_MILESTONE = 2
MILESTONES = [str(STEPS_PER_MILESTONE * number * TOKENS_PER_STEP) for number in (1, 2, 3)]
SHARD_BYTES = 60_000


def make_toy_run(folder: Path) -> Path:
    """Trains and exports; returns the run folder. In a process of its own, since commands set up logging for good.

    Raises:
        AssertionError: with all that was printed, if a command fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"

    def body() -> None:
        with log.open("w") as printed:
            for stream in (1, 2):
                os.dup2(printed.fileno(), stream)
            arguments = ToyCorpora.make(folder / "corpora").arguments(
                folder,
                f"export.every_tokens={STEPS_PER_MILESTONE * TOKENS_PER_STEP}",
                f"schedule.total_tokens={STEPS_PER_MILESTONE * len(MILESTONES) * TOKENS_PER_STEP}",
            )
            assert poro(["train", *arguments]) == 0
            assert poro(["export", str(folder / "toy"), "--milestones", "--max-shard-bytes", str(SHARD_BYTES)]) == 0

    assert in_child(body) == 0, log.read_text()
    return folder / "toy"


def exported_files(run: Path) -> Mapping[str, Mapping[str, str]]:
    """The sha256 of every file of every export, by milestone and path."""
    return {
        label: {
            path.relative_to(run / "exports" / label).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((run / "exports" / label).rglob("*"))
            if path.is_file()
        }
        for label in MILESTONES
    }
