"""Moving what came after a step of a run out of the way, by renames that can be repeated after any interruption.

Needs no torch.
"""

import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_poro.checkpoint.export_report import REPORT_NAME
from megatron_poro.checkpoint.locating import CHECKPOINTS_FOLDER, EXPORTS_FOLDER
from megatron_poro.checkpoint.store import LATEST_NAME, step_name, sync, write_durably
from megatron_poro.metrics.sinks import METRICS_NAME, split_metrics

ABANDONED_FOLDER = "abandoned"
SKIPPED_FOLDER = "skipped"
"""Folder of the samples that were skipped, one file for each step: ``step_00000144.jsonl``."""

_STEP_IN_NAME = re.compile(r"step_(\d+)\b")
_NEVER_READ = (".tmp", ".removed", ".partial")


def later_than(folder: Path, step: int) -> list[str]:
    """What of a run folder belongs to later steps, as relative paths: checkpoints, exports, skipped samples.

    Checkpoints that are damaged move too; a save that was cut short is left to the next save, which clears it.
    """
    found = [*_named_after_step(folder / CHECKPOINTS_FOLDER, step), *_named_after_step(folder / SKIPPED_FOLDER, step)]
    found += [path for path in _entries(folder / EXPORTS_FOLDER) if (_exported_step(path) or 0) > step]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def move_away(folder: Path, step: int, names: list[str], number: int) -> None:
    """Moves entries of a run folder, and the lines of its metrics after a step, to ``abandoned/<number>``.

    Every part of it is skipped if it has been done, so that it may be called again after an interruption at any point.

    Args:
        folder: the run's folder.
        step: what the run goes back to; ``latest`` points to it afterwards.
        names: what :func:`later_than` found before the first call.
        number: of the rewind.
    """
    branch = folder / ABANDONED_FOLDER / str(number)
    for parent in {branch, *((branch / name).parent for name in names)}:
        parent.mkdir(parents=True, exist_ok=True)
    for parent in (branch, branch.parent, folder):  # before anything is moved into a folder, its name is on the disk
        sync(parent)
    for name in names:
        source, target = folder / name, branch / name
        if source.exists():
            if target.exists():
                raise FileExistsError(errno.EEXIST, "it exists", str(target))
            source.rename(target)
            sync(target.parent)
            sync(source.parent)
    split_metrics(folder / METRICS_NAME, branch / METRICS_NAME, step)
    sync(branch)
    latest = folder / CHECKPOINTS_FOLDER / LATEST_NAME
    if step > 0:
        write_durably(latest, f"{step_name(step)}\n".encode())
    else:
        latest.unlink(missing_ok=True)
    sync(folder)


def _named_after_step(folder: Path, step: int) -> Iterator[Path]:
    for path in _entries(folder):
        match = _STEP_IN_NAME.match(path.name)
        if match and int(match[1]) > step and not path.name.endswith(_NEVER_READ):
            yield path


def _exported_step(export: Path) -> int | None:
    """The step of an exported model as its report says it, or None if it has none."""
    try:
        step = json.loads((export / REPORT_NAME).read_bytes())["checkpoint"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
