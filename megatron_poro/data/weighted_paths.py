"""Reads the mixture files of Megatron-DeepSpeed: groups of datasets with a weight and a range of documents each.

One line of quoted groups, ``"GROUP: weight start:end path, weight start:end path, ..." "GROUP: ..."``. The fork of
BigScience takes it with ``--train-weighted-split-paths-path`` and its like; each group of a validation file is
evaluated on its own. ``start:end`` are fractions of a dataset's documents; ``0:1`` is all of it.

Source: bigscience-workshop/Megatron-DeepSpeed: megatron/arguments.py (form), megatron/data/gpt_dataset.py (fractions).
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from megatron_poro.config.data import SourceConfig
from megatron_poro.errors import DataError

_GROUP = re.compile(r"\"([^\"]*)\"|'([^']*)'")


@dataclass(frozen=True, kw_only=True)
class WeightedPath:
    """One dataset of a group.

    Attributes:
        weight: as written; a group's weights need not sum to 1.
        start, end: part of its documents, 0 to 1.
        path: prefix of the dataset.
    """

    weight: float
    start: float
    end: float
    path: str


def read_weighted_paths(path: Path) -> dict[str, tuple[WeightedPath, ...]]:
    """The groups of a mixture file, in its order.

    Raises:
        DataError: if the file cannot be read or an entry is not of the form above, naming group and entry.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"mixture file {path} cannot be read ({error}).") from error
    groups: dict[str, tuple[WeightedPath, ...]] = {}
    for quoted in _quoted_groups(text, path):
        name, colon, entries = (part.strip() for part in quoted.partition(":"))
        if not colon or not name or not entries:
            raise DataError(f"{path}: group {quoted!r} is not of the form GROUP: weight start:end path, ...")
        if name in groups:
            raise DataError(f"{path} has two groups called {name!r}; rename one of them.")
        groups[name] = tuple(_entry(entry, f"{path} group {name}") for entry in entries.split(","))
    return groups


def source_configs(group: tuple[WeightedPath, ...], *, where: str) -> list[SourceConfig]:
    """A group as the sources of a mixture, in its order, which decides ties of the blend.

    A source is called after the last part of its path, as metrics and ``poro data show`` name it.

    Args:
        group: from ``read_weighted_paths``.
        where: file and group, for messages.

    Raises:
        DataError: if two would have one name.
    """
    names = [Path(entry.path).name for entry in group]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{where}: two paths end in {repeated!r}, but a source is called after its path; rename one.")
    return [
        SourceConfig(name=name, path=entry.path, weight=entry.weight, start=entry.start, end=entry.end)
        for name, entry in zip(names, group, strict=True)
    ]


def _quoted_groups(text: str, path: Path) -> list[str]:
    groups = [first or second for first, second in _GROUP.findall(text)]
    left_over = _GROUP.sub("", text).strip()
    if left_over or not groups:
        raise DataError(f"{path}: {left_over or 'nothing'!r} is not a group in quotation marks; quote each group.")
    return groups


def _entry(text: str, where: str) -> WeightedPath:
    words = text.split()
    fractions = words[1].split(":") if len(words) == 3 else []
    try:
        weight, (start, end) = float(words[0]), (float(fraction) for fraction in fractions)
    except (ValueError, IndexError):
        raise DataError(f"{where}: {text.strip()!r} is not of the form weight start:end path.") from None
    if not (math.isfinite(weight) and weight > 0):
        raise DataError(f"{where}: weight {words[0]} of {words[2]} must be positive.")
    if not 0 <= start < end <= 1:
        raise DataError(f"{where}: documents {words[1]} of {words[2]} must be 0 <= start < end <= 1.")
    return WeightedPath(weight=weight, start=start, end=end, path=words[2])
