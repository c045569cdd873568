"""``poro ckpt``: which checkpoints there are, what is in one, whether each of their bytes is as it was written.

``ls`` and ``verify`` need no torch: they run on a login node.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.locating import checkpoint_at, store_at
from megatron_poro.checkpoint.state import META_NAME, RunState
from megatron_poro.checkpoint.store import LATEST_NAME, step_of
from megatron_poro.errors import CheckpointError
from megatron_poro.units import format_bytes

DAMAGED_STATUS = 1


def main(argv: Sequence[str]) -> int:
    """Runs ``poro ckpt ls | inspect | verify`` with the arguments after it; returns the exit status."""
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments.path)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poro ckpt", description="List, inspect and verify checkpoints.")
    verbs = parser.add_subparsers(required=True, metavar="ls | inspect | verify")
    for name, run, text in (
        ("ls", _list, "one line for each checkpoint of a run; sizes are compared, contents are not"),
        ("inspect", _inspect, "the state and the tensors of one checkpoint (of a run: of its newest)"),
        ("verify", _verify, "compare every byte with its manifest; status 1 if something is damaged"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("path", type=Path, metavar="PATH", help="run folder, folder of checkpoints, or one of them")
        verb.set_defaults(run=run)
    return parser


def _list(path: Path) -> int:
    store = store_at(path)
    pointer = store.folder / LATEST_NAME
    latest = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None
    rows: list[tuple[str, ...]] = [("step", "samples", "tokens", "milestone", "size", "created", "state")]
    rows += [_row(store.path(step), step, latest) for step in sorted(store.steps())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(folder: Path, step: int, latest: str | None) -> tuple[str, ...]:
    problems = manifest.problems(folder, checksums=False)
    try:
        state = RunState.read(folder / META_NAME)
        size = format_bytes(sum(entry.size for entry in manifest.read(folder).values()))
    except CheckpointError:
        return (str(step), "", "", "", "", "", f"damaged: {'; '.join(problems)}")
    word = f"damaged: {'; '.join(problems)}" if problems else "complete"
    return (
        str(step),
        f"{state.consumed_samples:,}",
        f"{state.consumed_tokens:,}",
        state.milestone or "",
        size,
        state.created,
        f"{word}, latest" if folder.name == latest else word,
    )


def _inspect(path: Path) -> int:
    from megatron_poro.checkpoint.reading import CheckpointReader  # the only verb that needs torch
    from megatron_poro.engine.engine import FragmentKind

    reader = CheckpointReader(checkpoint_at(path))
    state = reader.state
    layout = state.topology
    rows = [
        ("checkpoint", str(reader.path)),
        ("step", f"{state.step:,} ({state.optimizer_step:,} of the optimizer)"),
        ("consumed", f"{state.consumed_samples:,} samples, {state.consumed_tokens:,} tokens"),
        ("milestone", state.milestone or "none"),
        ("created", state.created),
        ("written by", f"{layout.world_size} process{'es' * (layout.world_size > 1)} ({layout})"),
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
        print(f"{name:<{width}}  {' x '.join(map(str, shape)) or 'scalar':<16}  {math.prod(shape):,}")
    print(f"\n{reader.state.config}", end="")
    return 0


def _verify(path: Path) -> int:
    if step_of(path) is not None and path.is_dir():
        folders = [path]
    else:
        store = store_at(path)
        folders = [store.path(step) for step in sorted(store.steps())]
    damaged = False
    for folder in folders:
        problems = manifest.problems(folder)
        damaged |= bool(problems)
        for problem in problems:
            print(f"{folder.name}: DAMAGED: {problem}")
        if not problems:
            entries = manifest.read(folder).values()
            print(f"{folder.name}: valid, {len(entries)} files, {format_bytes(sum(entry.size for entry in entries))}")
    return DAMAGED_STATUS if damaged else 0
