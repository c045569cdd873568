"""Time limits as Slurm writes them."""

import re

_WALLTIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<day_hours>\d+)(?::(?P<day_minutes>\d+)(?::(?P<day_seconds>\d+))?)?)"
    r"|(?:(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+))"
    r"|(?:(?P<only_minutes>\d+)(?::(?P<minute_seconds>\d+))?)"
)
_UNITS = {
    "days": 86400,
    "day_hours": 3600,
    "day_minutes": 60,
    "day_seconds": 1,
    "hours": 3600,
    "minutes": 60,
    "seconds": 1,
    "only_minutes": 60,
    "minute_seconds": 1,
}


def parse_walltime(text: str) -> int:
    """Seconds of a time limit: ``2-00:00:00``, ``2-12``, ``03:00:00``, ``90`` (minutes) or ``90:30``.

    Raises:
        ValueError: if it is not one of these forms.

    Source: the manual page of sbatch, option ``--time``.
    """
    match = _WALLTIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text} is not a time limit; write days-hours:minutes:seconds or hours:minutes:seconds")
    return sum(_UNITS[name] * int(value) for name, value in match.groupdict().items() if value is not None)


def format_walltime(seconds: int) -> str:
    """The form with all parts: ``2-00:00:00``; without days below one, ``03:00:00``."""
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock
