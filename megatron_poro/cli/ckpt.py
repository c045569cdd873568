"""``poro ckpt``: which checkpoints there are, what is in one, whether it is intact, how two differ, which may go.

``ls``, ``verify`` and ``prune`` need no torch: they run on a login node. With ``--json`` each verb prints one JSON
value for scripts.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.locating import checkpoint_at, store_at
from megatron_poro.checkpoint.state import META_NAME, RunState
from megatron_poro.checkpoint.store import LATEST_NAME, CheckpointStore, step_of
from megatron_poro.config.identity import Difference
from megatron_poro.errors import CheckpointError, ConfigError
from megatron_poro.units import format_bytes

DAMAGED_STATUS = 1
DIFFERENT_STATUS = 1


def main(argv: Sequence[str]) -> int:
    """Runs ``poro ckpt ls | inspect | verify | diff | prune`` with the arguments after it; returns the exit status."""
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro ckpt", description="List, inspect, verify, compare, remove checkpoints."
    )
    verbs = parser.add_subparsers(required=True, metavar="ls | inspect | verify | diff | prune")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("--json", action="store_true", help="print JSON, for scripts")
        verb.set_defaults(run=run)
        return verb

    a_path = "run folder, folder of checkpoints, or one of them"
    for name, run, text in (
        ("ls", _list, "one line for each checkpoint of a run; sizes are compared, contents are not"),
        ("inspect", _inspect, "the state and the tensors of one checkpoint (of a run: of its newest)"),
        ("verify", _verify, "compare every byte with its manifest; status 1 if something is damaged"),
    ):
        add(name, run, text).add_argument("path", type=Path, metavar="PATH", help=a_path)
    diff = add("diff", _diff, "what differs between two checkpoints (of a run: its newest); status 1 if anything does")
    for side in ("A", "B"):
        diff.add_argument(side.lower(), type=Path, metavar=side, help=a_path)
    prune = add("prune", _prune, "remove all but the newest N checkpoints of a run and its milestones")
    prune.add_argument("path", type=Path, metavar="RUN", help="run folder, or folder of checkpoints")
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="how many of the newest stay, at least 1")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    return parser


def _list(arguments: argparse.Namespace) -> int:
    store = store_at(arguments.path)
    pointer = store.folder / LATEST_NAME
    latest = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None
    found = [_summary(store, step, latest) for step in sorted(store.steps())]
    if arguments.json:
        return _print_json(found)
    rows: list[tuple[str, ...]] = [("step", "samples", "tokens", "milestone", "size", "created", "state")]
    rows += map(_row, found)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _summary(store: CheckpointStore, step: int, latest: str | None) -> dict[str, Any]:
    """What ``ls`` says of one checkpoint; the fields that cannot be read are missing."""
    folder = store.path(step)
    summary: dict[str, Any] = {
        "step": step,
        "path": str(folder),
        "latest": folder.name == latest,
        "problems": manifest.problems(folder, checksums=False),
    }
    try:
        state = RunState.read(folder / META_NAME)
        size = sum(entry.size for entry in manifest.read(folder).values())
    except CheckpointError:
        return summary
    return summary | {
        "samples": state.consumed_samples,
        "tokens": state.consumed_tokens,
        "milestone": state.milestone,
        "bytes": size,
        "created": state.created,
        "run_id": state.run_id,
        "lineage": state.lineage,
    }


def _row(summary: dict[str, Any]) -> tuple[str, ...]:
    word = f"damaged: {'; '.join(summary['problems'])}" if summary["problems"] else "complete"
    if "bytes" not in summary:
        return (str(summary["step"]), "", "", "", "", "", word)
    return (
        str(summary["step"]),
        f"{summary['samples']:,}",
        f"{summary['tokens']:,}",
        summary["milestone"] or "",
        format_bytes(summary["bytes"]),
        summary["created"],
        f"{word}, latest" if summary["latest"] else word,
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from megatron_poro.checkpoint.reading import CheckpointReader  # torch is loaded where tensors are looked at
    from megatron_poro.engine.engine import FragmentKind

    reader = CheckpointReader(checkpoint_at(arguments.path))
    state = reader.state
    if arguments.json:
        return _print_json({"path": str(reader.path), "state": dataclasses.asdict(state), "tensors": reader.shapes})
    layout = state.topology
    rows = [
        ("checkpoint", str(reader.path)),
        ("step", f"{state.step:,} ({state.optimizer_step:,} of the optimizer)"),
        ("consumed", f"{state.consumed_samples:,} samples, {state.consumed_tokens:,} tokens"),
        ("milestone", state.milestone or "none"),
        ("created", state.created),
        ("written by", f"{layout.world_size} process{'es' * (layout.world_size > 1)} ({layout})"),
        ("run", f"{state.run_id or 'none'}, rewound {state.lineage} times, {len(state.skipped_steps)} steps skipped"),
        ("versions", ", ".join(f"{name} {version}" for name, version in state.versions.items())),
        ("tokenizer", state.tokenizer_fingerprint),
        ("random numbers", state.seed_policy),
        ("check loss", "none" if state.check_loss is None else repr(state.check_loss)),
        ("weights", str(reader.dtype).removeprefix("torch.")),
        ("values", ", ".join(kind.value for kind in FragmentKind)),
        ("parameters", f"{sum(map(math.prod, reader.shapes.values())):,} in {len(reader.shapes)} tensors"),
    ]
    for name, text in rows:
        print(f"{name:<14}  {text}")
    print()
    width = max(len(name) for name in reader.shapes)
    for name, shape in reader.shapes.items():
        print(f"{name:<{width}}  {_shape(shape):<16}  {math.prod(shape):,}")
    print(f"\n{reader.state.config}", end="")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    path: Path = arguments.path
    if step_of(path) is not None and path.is_dir():
        folders = [path]
    else:
        store = store_at(path)
        folders = [store.path(step) for step in sorted(store.steps())]
    found = {folder: manifest.problems(folder) for folder in folders}
    if arguments.json:
        _print_json([{"path": str(folder), "problems": problems} for folder, problems in found.items()])
        return DAMAGED_STATUS if any(found.values()) else 0
    for folder, problems in found.items():
        for problem in problems:
            print(f"{folder.name}: DAMAGED: {problem}")
        if not problems:
            entries = manifest.read(folder).values()
            print(f"{folder.name}: valid, {len(entries)} files, {format_bytes(sum(entry.size for entry in entries))}")
    return DAMAGED_STATUS if any(found.values()) else 0


def _diff(arguments: argparse.Namespace) -> int:
    from megatron_poro.checkpoint.comparing import differing_settings, differing_state, differing_tensors
    from megatron_poro.checkpoint.reading import CheckpointReader

    left, right = (CheckpointReader(checkpoint_at(path)) for path in (arguments.a, arguments.b))
    state, settings = differing_state(left, right), differing_settings(left, right)
    tensors = list(differing_tensors(left, right))
    status = DIFFERENT_STATUS if state or settings or tensors else 0
    if arguments.json:
        _print_json(
            {
                "state": list(map(dataclasses.asdict, state)),
                "config": list(map(dataclasses.asdict, settings)),
                "tensors": list(map(dataclasses.asdict, tensors)),
            }
        )
        return status
    _print_differences("state", state)
    _print_differences("config", settings)
    for one in tensors:
        if one.largest is None or one.left is None:
            told = f"{_shape(one.left)} -> {_shape(one.right)}"
        else:
            told = f"largest difference {one.largest:.3e}, {one.elements:,} of {math.prod(one.left):,} elements differ"
        print(f"tensor  {one.key}: {told}")
    print(f"{len(left.tensors)} tensors, {len(tensors)} differ")
    return status


def _print_differences(of: str, differences: Sequence[Difference]) -> None:
    for difference in differences:
        print(f"{of:<6}  {difference}")


def _prune(arguments: argparse.Namespace) -> int:
    if arguments.keep < 1:
        raise ConfigError(f"--keep {arguments.keep} must be at least 1: the newest checkpoint always stays.")
    store = CheckpointStore(store_at(arguments.path).folder, keep_last=arguments.keep)
    gone = [store.path(step) for step in store.superfluous()] if arguments.dry_run else store.retain()
    kept = [store.path(step) for step in store.steps() if store.path(step) not in gone]
    if arguments.json:
        return _print_json(
            {"removed": list(map(str, gone)), "kept": list(map(str, kept)), "dry_run": arguments.dry_run}
        )
    for path in gone:
        print(f"{'would remove' if arguments.dry_run else 'removed'} {path}")
    print(f"{len(gone)} {'to remove' if arguments.dry_run else 'removed'}, {len(kept)} kept")
    return 0


def _shape(shape: Sequence[int] | None) -> str:
    return "(absent)" if shape is None else " x ".join(map(str, shape)) or "scalar"


def _print_json(value: object) -> int:
    print(json.dumps(value, indent=1))
    return 0
