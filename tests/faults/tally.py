"""What a campaign of faults is bounded by, and what it brings home: how many trials stand next to each zero."""

import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class Budget:
    """How long a campaign may go on: a number of trials, a number of seconds, or whichever ends first.

    Args:
        trials: at most so many.
        seconds: no trial starts later than so many seconds from now; the first one always may.
    """

    def __init__(self, *, trials: int | None = None, seconds: float | None = None) -> None:
        assert trials is not None or seconds is not None, "a campaign must end"
        self.trials = trials
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def allows(self, done: int) -> bool:
        """Whether one more trial may start after so many."""
        if self.trials is not None and done >= self.trials:
            return False
        return done == 0 or self._deadline is None or time.monotonic() < self._deadline


@dataclass
class Tally:
    """What happened to one claim.

    Attributes:
        claim: what must be true in every trial, one sentence.
        trials: how many were made.
        failures: what went wrong, one text per trial that failed.
        kinds: how many trials of each kind (phase, fault, file operation) were among them.
        facts: numbers that were measured on the way.
    """

    claim: str
    trials: int = 0
    failures: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    facts: dict[str, float] = field(default_factory=dict)

    def run(self, budget: Budget, trial: Callable[[int], str]) -> "Tally":
        """Makes trials until the budget is spent; a trial that raises has failed.

        Args:
            budget: when to end.
            trial: called with the number of the trial; returns its kind.
        """
        while budget.allows(self.trials):
            number = self.trials
            self.trials += 1
            try:
                self.kinds[trial(number)] += 1
            except Exception:
                self.failures.append(f"trial {number}: {traceback.format_exc(limit=-3)}")
        return self


class Campaign(Protocol):
    """Makes trials of one claim; the same seed draws the same faults."""

    def __call__(self, budget: Budget, rng: random.Random, folder: Path) -> Tally:
        """Makes trials in an empty folder until the budget is spent."""
        ...
