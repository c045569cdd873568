"""``export_report.json``: where an export comes from, what was proven of it, and what each of its files must be.

It goes with the export wherever that goes, so it holds no path and no name of a machine. Nothing here needs torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.manifest import FileEntry
from megatron_poro.checkpoint.state import RunState, software_versions
from megatron_poro.errors import CheckpointError

REPORT_NAME = "export_report.json"
FORMAT = 1


def build_report(
    state: RunState,
    *,
    checkpoint: str,
    model: Mapping[str, Any],
    parity: Mapping[str, Any] | None,
    files: Mapping[str, FileEntry],
) -> dict[str, Any]:
    """The content of the report.

    Args:
        state: of the checkpoint.
        checkpoint: name of its folder.
        model: what was written: ``dtype``, ``tensors``, ``parameters``, ``tensor_bytes``, ``shards``.
        parity: what the comparison with the checkpoint found; None if there was none.
        files: every file of the export but the report, by name.
    """
    return {
        "format": FORMAT,
        "checkpoint": {
            "name": checkpoint,
            "step": state.step,
            "consumed_samples": state.consumed_samples,
            "consumed_tokens": state.consumed_tokens,
            "milestone": state.milestone,
            "created": state.created,
            "layout": asdict(state.topology),
            "versions": dict(state.versions),
        },
        "model": dict(model),
        "tokenizer_fingerprint": state.tokenizer_fingerprint,
        "parity": None if parity is None else dict(parity),
        "exported_by": {**software_versions(), "transformers": metadata.version("transformers")},
        "files": {name: {"bytes": entry.size, "sha256": entry.sha256} for name, entry in sorted(files.items())},
    }


def read_report(folder: Path | str) -> dict[str, Any]:
    """The report of an export.

    Raises:
        CheckpointError: if there is none, or it cannot be read.
    """
    path = Path(folder) / REPORT_NAME
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if report["format"] == FORMAT and isinstance(report["files"], dict):
            return report
        written_by = report["format"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no export: it has no {REPORT_NAME}. Make one with poro export.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: make the export again.") from error
    raise CheckpointError(f"{path} has format {written_by!r}, this release reads {FORMAT}: make the export again.")


def export_problems(folder: Path | str) -> list[str]:
    """Everything that keeps a folder from being the export its report describes, one phrase each; empty means whole.

    Every byte is read.

    Raises:
        CheckpointError: if there is no report.
    """
    folder = Path(folder)
    recorded = read_report(folder)["files"]
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {REPORT_NAME}
    problems = [f"{name} is missing" for name in sorted(recorded.keys() - present)]
    problems += [f"{name} is not of this export" for name in sorted(present - recorded.keys())]
    for name in sorted(recorded.keys() & present):
        found, wanted = manifest.describe(folder / name), recorded[name]
        if (found.size, found.sha256) != (wanted["bytes"], wanted["sha256"]):
            problems.append(f"{name} is not the file that was exported (its size or checksum differs)")
    return problems
