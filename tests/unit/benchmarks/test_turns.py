"""Variants take turns in processes of their own, and what is missing is said in one sentence."""

import os
import subprocess
import sys
from functools import partial

import pytest

from benchmarks.turns import Peer, Step, race, require
from tests.house.checkout import ROOT


def counting(start: int) -> Step:
    """A step whose loss is how often it was taken, counted from a start."""
    taken = start

    def step() -> float:
        nonlocal taken
        taken += 1
        return float(taken)

    return step


def failing() -> Step:
    raise ValueError("broken")


def test_variants_take_their_turns_after_a_warm_up() -> None:
    rounds: list[int] = []
    turns, peaks = race(
        {"low": partial(counting, 0), "high": partial(counting, 100)},
        rounds=2,
        steps=3,
        before_round=lambda: rounds.append(1),
    )
    assert [[turn.loss for turn in turns[name]] for name in ("low", "high")] == [[5.0, 8.0], [105.0, 108.0]]
    assert len(rounds) == 2
    assert min(peaks.values()) > 10_000_000


def test_variant_that_fails_is_named() -> None:
    with pytest.raises(SystemExit, match="the variant 'bad' failed"):
        race({"bad": failing}, rounds=1, steps=1)


def test_missing_library_is_named_with_what_to_install() -> None:
    there, missing = Peer("os", "nothing"), Peer("no_such.library", "no-such==1")
    require({"good": there})
    with pytest.raises(SystemExit) as left:
        require({"good": there, "bad": missing})
    assert str(left.value) == "--variants 'bad': not installed. Run: pip install 'no-such==1', or leave it out."


def test_training_step_prints_a_row_for_each_variant_and_no_warning() -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.training_step", "--sequence", "16", "--batch", "1", "--rounds", "1"),
            *("--vocabulary", "64", "--steps", "1", "--variants", "ours", "megatron-core", "transformers"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    rows = [line.split(" | ")[0] for line in result.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["| variant", "| ours", "| megatron-core", "| transformers"]
    assert "warn" not in result.stderr.lower(), result.stderr


def test_engines_at_one_process_train_alike() -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.engine_overhead", "--sequence", "16", "--rounds", "1"),
            *("--microbatches", "2", "--steps", "1"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert " apart |" in result.stdout
