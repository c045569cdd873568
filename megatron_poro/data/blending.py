"""Which source each sample of a mixture comes from: the greedy rule of Megatron's blended dataset.

Sample ``i`` comes from the source that is furthest behind its share, ``weight * max(i, 1) - taken``; ties go to the
source that is named first. The rule is sequential: each choice depends on all before it. Here many stretches of it are
worked out side by side with numpy, each from a guess of where it starts. Two runs of the rule soon fall into step
whatever they start from, so the guess is made some samples early and followed up to the start; a stretch whose guess
was wrong all the same is done again from where the one before it really ended. Because every start is compared with the
end before it, the result is the sequential one exactly, down to the rounding of each difference.

No source is ever a whole sample ahead of its share, nor ``1 + 1/2 + ... + 1/(sources - 1)`` samples behind it; the data
page (docs/data.md) has the proof.

Source: Megatron-DeepSpeed, megatron/data/blendable_dataset.py and build_blending_indices in helpers.cpp.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.index_cache import IndexCache
from megatron_poro.errors import ConfigError

MAX_SOURCES = 255
"""A choice is stored in one byte."""

SURPLUS = 1.005
"""A source is asked for this many times its share, as in Megatron; decides how many epochs are shuffled together."""

STRETCH = 4096
"""Samples per stretch; the totals before each stretch are kept, so that a place is found by counting within one."""

BLEND_VERSION = 1
"""Part of the cache key; raise it when the choices for the same inputs change."""

_STRETCHES_AT_ONCE = 4096
_LEAD = 512
"""Samples before a stretch from which its start is guessed; with 256, no guess of the Poro mixture was wrong."""


class Place(NamedTuple):
    """Where a sample of the mixture comes from: which source, and which of its samples."""

    source: int
    sample: int


class Blend:
    """The choices for ``num_samples`` samples, memory-mapped: one byte each.

    Raises:
        ConfigError: if there are no sources, too many, or a weight is not a positive number.
    """

    def __init__(self, weights: Sequence[float], *, num_samples: int, cache: IndexCache) -> None:
        """Maps the choices from the cache, or makes them."""
        self.weights = normalised(weights)
        self._num_samples = num_samples
        facts = {
            "kind": "blend",
            "version": BLEND_VERSION,
            "weights": [weight.hex() for weight in self.weights.tolist()],
            "num_samples": num_samples,
        }
        arrays = cache.arrays("blend", facts, lambda: choose(self.weights, num_samples)._asdict())
        self._choices = Choices(**arrays)

    def __len__(self) -> int:
        return self._num_samples

    def place(self, sample: int) -> Place:
        """Where sample number ``sample`` of the mixture comes from."""
        if not 0 <= sample < self._num_samples:
            raise IndexError(f"sample {sample} of a mixture of {self._num_samples}")
        source = int(self._choices.sources[sample])
        stretch, offset = divmod(sample, STRETCH)
        since = self._choices.sources[sample - offset : sample]
        return Place(source, int(self._choices.taken[stretch, source]) + int(np.count_nonzero(since == source)))

    def consumed(self, samples: int) -> NDArray[np.int64]:
        """How many of the first ``samples`` samples came from each source, int64 ``[sources]``."""
        if not 0 <= samples <= self._num_samples:
            raise IndexError(f"{samples} samples of a mixture of {self._num_samples}")
        stretch, offset = divmod(samples, STRETCH)
        since = self._choices.sources[samples - offset : samples]
        counts: NDArray[np.int64] = self._choices.taken[stretch] + np.bincount(since, minlength=len(self.weights))
        return counts


class Choices(NamedTuple):
    """A blend as arrays.

    Attributes:
        sources: uint8 ``[num_samples]``.
        taken: int64 ``[num_samples // STRETCH + 1, sources]``, samples taken from each source before each stretch.
    """

    sources: NDArray[Any]
    taken: NDArray[Any]


def normalised(weights: Sequence[float]) -> NDArray[np.float64]:
    """Weights that sum to 1.

    Divided twice, by a plain sum and by numpy's, because Megatron does and the last bit can decide a tie.

    Raises:
        ConfigError: if there are no weights, too many, or one is not a positive number.
    """
    if not 1 <= len(weights) <= MAX_SOURCES:
        raise ConfigError(f"a mixture has 1 to {MAX_SOURCES} sources, this one has {len(weights)}.")
    for position, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(
                f"weight {weight} of source {position} must be a positive number; or leave the source out."
            )
    once = np.array(_shares(weights), dtype=np.float64)
    return once / np.sum(once)


def samples_to_request(weights: Sequence[float], num_samples: int) -> list[int]:
    """How many samples each source is asked for: its share and half a per cent; a lone source is asked for exactly all.

    A blend never takes more than that: what it has taken from a source is always less than one above its share.
    """
    if len(weights) == 1:
        return [num_samples]
    return [math.ceil(num_samples * share * SURPLUS) for share in _shares(weights)]


def _shares(weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum, added one by one: from Python 3.12 on, ``sum`` rounds differently."""
    total = functools.reduce(operator.add, weights)
    return [weight / total for weight in weights]


def choose(weights: NDArray[np.float64], num_samples: int) -> Choices:
    """The greedy choices for normalised ``weights``."""
    num_stretches = num_samples // STRETCH + 1
    sources = np.empty(num_stretches * STRETCH, dtype=np.uint8)
    taken = np.zeros((num_stretches + 1, len(weights)), dtype=np.int64)
    for first in range(0, num_stretches, _STRETCHES_AT_ONCE):
        last = min(first + _STRETCHES_AT_ONCE, num_stretches)
        chosen, after = _choose_side_by_side(weights, taken[first], range(first, last))
        sources[first * STRETCH : last * STRETCH] = chosen.reshape(-1)
        taken[first + 1 : last + 1] = after
    return Choices(sources[:num_samples], taken[:num_stretches])


def _choose_side_by_side(
    weights: NDArray[np.float64], before_first: NDArray[np.int64], stretches: range
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Choices ``[stretches, STRETCH]`` and totals after each stretch ``[stretches, sources]``, given those before."""
    first_samples = np.array(stretches, dtype=np.float64) * STRETCH
    early = np.maximum(first_samples - _LEAD, 0.0)
    _, before = _run_rule(weights, _guess_taken(weights, early), early, steps=_LEAD)
    before[:, 0] = before_first
    after = np.empty_like(before)
    chosen = np.empty((STRETCH, len(stretches)), dtype=np.uint8)
    wrong = np.arange(len(stretches))
    while len(wrong):
        chosen[:, wrong], after[:, wrong] = _run_rule(weights, before[:, wrong], first_samples[wrong], steps=STRETCH)
        # a stretch must start where the one before it ended
        wrong = 1 + np.flatnonzero((after[:, :-1] != before[:, 1:]).any(axis=0))
        before[:, wrong] = after[:, wrong - 1]
    return np.ascontiguousarray(chosen.T), after.T.astype(np.int64)


def _run_rule(
    weights: NDArray[np.float64], before: NDArray[np.float64], first_samples: NDArray[np.float64], *, steps: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The rule, one stretch per column: choices ``[steps, columns]`` and totals after them ``[sources, columns]``."""
    taken = before.copy()
    chosen = np.empty((steps, len(first_samples)), dtype=np.uint8)
    numbers = np.arange(len(weights), dtype=np.uint8)
    behind, furthest = np.empty_like(taken), np.empty(len(first_samples))
    is_furthest = np.empty(taken.shape, dtype=np.bool_)
    for step in range(steps):
        np.multiply(weights[:, None], np.maximum(first_samples + step, 1.0), out=behind)
        np.subtract(behind, taken, out=behind)
        np.maximum.reduce(behind, axis=0, out=furthest)
        np.equal(behind, furthest, out=is_furthest)
        if np.count_nonzero(is_furthest) != len(furthest):
            first = is_furthest.argmax(axis=0)  # of equals; slower than all of the above, and seldom needed
            np.equal(numbers[:, None], first, out=is_furthest)
        np.add(taken, is_furthest, out=taken)
        np.dot(numbers, is_furthest.view(np.uint8), out=chosen[step])
    return chosen, taken


def _guess_taken(weights: NDArray[np.float64], samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """About what has been taken before each of ``samples``, ``[sources, samples]``; columns sum to ``samples``."""
    shares = weights[:, None] * samples
    whole = np.floor(shares)
    missing = samples - whole.sum(axis=0)
    rank = np.argsort(np.argsort(whole - shares, axis=0, kind="stable"), axis=0)  # 0: largest remainder
    guess: NDArray[np.float64] = whole + (rank < missing)
    return guess
