"""A sample with chosen shares of several groups of texts, say equal parts of Finnish, English and code.

Texts are taken whole and spread evenly over their group, in order, without chance: the same texts give the same sample.
"""

from collections.abc import Iterable, Iterator, Sequence

from megatron_poro.errors import ConfigError, DataError


def plan_shares(available: Sequence[int], weights: Sequence[float], *, characters: int | None = None) -> list[int]:
    """Characters to take from each group, in proportion to the weights.

    Args:
        available: characters of each group.
        weights: of any sum; equal weights give equal shares.
        characters: of the whole sample; None for as many as there are before a group runs out.

    Raises:
        ConfigError: if the weights do not fit the groups, or are not positive.
        DataError: if a group is empty, or has fewer characters than its share of ``characters``.
    """
    if len(weights) != len(available):
        raise ConfigError(f"{len(weights)} weights for {len(available)} groups of texts: give one for each.")
    if not all(0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"weights {list(weights)} are not all positive numbers: leave a group out to exclude it.")
    if not all(available):
        raise DataError(f"group {available.index(0) + 1} of {len(available)} holds no text: leave it out.")
    scale = min(held / weight for held, weight in zip(available, weights, strict=True))
    if characters is not None:
        if characters > scale * sum(weights):
            short = min(range(len(weights)), key=lambda group: available[group] / weights[group])
            raise DataError(
                f"group {short + 1} has {available[short]:,} characters, its share of {characters:,} is "
                f"{round(characters * weights[short] / sum(weights)):,}: ask for at most "
                f"{int(scale * sum(weights)):,}, or give it more text."
            )
        scale = characters / sum(weights)
    return [min(held, round(scale * weight)) for held, weight in zip(available, weights, strict=True)]


def take_evenly(texts: Iterable[str], *, available: int, wanted: int) -> Iterator[str]:
    """Whole texts of a group that holds ``available`` characters, ``wanted`` characters to within half a text.

    A text is taken when that brings the characters taken closer to the share of the characters passed.
    """
    passed = taken = 0
    for text in texts:
        passed += len(text)
        if 2 * (wanted * passed - taken * available) >= len(text) * available:
            taken += len(text)
            yield text
