"""Counts, bytes and seconds, read from and written for people.

A count is an exact ``int``: ``1.5T`` is read digit by digit, never through a float, so that a run of 10^12 tokens does
not end a few samples early. The suffixes are decimal: k 10^3, M 10^6, B 10^9, T 10^12.
"""

import re

_SUFFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_COUNT = re.compile(r"(?P<whole>[0-9]+(?:_[0-9]+)*)(?:\.(?P<fraction>[0-9]+))?(?P<suffix>[kKMBT]?)")
# Labels stop at B: Poro's checkpoints are called 100B ... 900B, 1000B, not 1T.
_LABEL_UNITS = (("B", 10**9), ("M", 10**6), ("k", 10**3))


def parse_count(text: int | str) -> int:
    """Reads a count of tokens, samples or bytes.

    Args:
        text: a non-negative ``int``, or digits with ``_`` between them, an optional decimal fraction and one of the
            suffixes ``k M B T``: ``10B``, ``1.5T``, ``500k``, ``10_000``.

    Returns:
        The exact number.

    Raises:
        ValueError: if it is not such a text, is negative, or is not a whole number.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"{text} is negative; a count is 0 or more")
        return text
    match = _COUNT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text} is not a count; write a whole number or one like 10B, 1.5T, 4M or 500k")
    fraction = match["fraction"] or ""
    scaled = int(match["whole"] + fraction) * _SUFFIXES[match["suffix"]]
    scale: int = 10 ** len(fraction)
    number, rest = divmod(scaled, scale)
    if rest:
        raise ValueError(f"{text} is not a whole number; a count has no fractions")
    return number


def format_count(number: int, *, unit: str | None = None) -> str:
    """Shortest exact label of a count: ``100B``, ``1000B``, ``1500M``, ``500k``; plain digits when no unit divides it.

    ``parse_count`` reads every label back to the same number.

    Args:
        number: the count.
        unit: ``k``, ``M``, ``B`` or ``T``: count in this one whatever the number, with as many decimals as it takes
            (``0.5T``).

    Raises:
        ValueError: if the number is negative.
    """
    if number < 0:
        raise ValueError(f"{number} is negative; a count is 0 or more")
    if unit is not None:
        whole, rest = divmod(number, _SUFFIXES[unit])
        decimals = f"{rest:0{len(str(_SUFFIXES[unit])) - 1}}".rstrip("0")
        return f"{whole}{'.' if decimals else ''}{decimals}{unit}"
    for suffix, size in _LABEL_UNITS:
        if number and number % size == 0:
            return f"{number // size}{suffix}"
    return str(number)


def format_bytes(number: int) -> str:
    """Bytes in decimal units with three significant digits: ``512 B``, ``68.4 GB``."""
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    value, index = float(number), 0
    while abs(value) >= 999.5 and index < len(units) - 1:  # from 999.5 on, three digits would print 1e+03
        value, index = value / 1000, index + 1
    return f"{value:.3g} {units[index]}"


def format_seconds(seconds: float) -> str:
    """A duration in the units that matter: ``850 ms``, ``12.3 s``, ``4 min 05 s``, ``2 h 07 min``, ``66 d 09 h``."""
    if seconds < 0:
        return "-" + format_seconds(-seconds)
    if round(seconds * 1000) < 1000:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"
