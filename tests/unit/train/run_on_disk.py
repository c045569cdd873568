"""The folder of a run that was never trained: valid checkpoints of chosen steps, metrics, exports, skipped samples."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.state import META_NAME, RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.metrics import names
from megatron_poro.metrics.sinks import JsonLinesSink
from megatron_poro.parallel.topology import Topology
from megatron_poro.train.lineage import Lineage, RunRecord, read_record


def run_state(step: int, *, run_id: str = "", lineage: int = 0) -> RunState:
    return RunState(
        step=step,
        consumed_samples=10 * step,
        consumed_tokens=100 * step,
        optimizer_step=step,
        config="",
        identity={},
        topology=Topology(),
        tokenizer_fingerprint="",
        run_id=run_id,
        lineage=lineage,
    )


def commit(folder: Path, step: int, *, run_id: str = "", lineage: int = 0) -> Path:
    """A valid checkpoint, as the loader sees it."""
    store = CheckpointStore(folder / "checkpoints", keep_last=1000)
    staging = store.stage(step, 0)
    (staging / META_NAME).write_bytes(run_state(step, run_id=run_id, lineage=lineage).encode())
    return store.commit(staging, {META_NAME: manifest.describe(staging / META_NAME)})


def export(folder: Path, label: str, step: int) -> None:
    """What an export leaves, as far as a rewind looks at it."""
    (folder / "exports" / label).mkdir(parents=True)
    report = {"checkpoint": {"step": step}}
    (folder / "exports" / label / "export_report.json").write_text(json.dumps(report))


def train(folder: Path, steps: Iterable[int], *, saved: Iterable[int]) -> Lineage:
    """Lines of metrics for some steps and checkpoints of others, by the lineage that the folder has."""
    folder.mkdir(parents=True, exist_ok=True)
    lineage = Lineage(folder, read_record(folder) or RunRecord.new(), writes=True)
    lineage.write()
    steps, saved = list(steps), set(saved)
    sink = JsonLinesSink(folder / "metrics.jsonl", min(steps) - 1)
    for step in steps:
        sink.write(step, 100 * step, {names.STEP.key: step, names.LINEAGE.key: lineage.number})
        if step in saved:
            commit(folder, step, run_id=lineage.run_id, lineage=lineage.number)
            lineage.committed(step)
    sink.close()
    return lineage


def lines(path: Path) -> list[tuple[int, int]]:
    """Step and lineage of each line of metrics."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [(record[names.STEP.key], record[names.LINEAGE.key]) for record in records]


def contents(folder: Path) -> dict[str, str]:
    """Checksum of every file below a folder that a rewind is to keep, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
