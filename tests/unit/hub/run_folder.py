"""A run folder with exported milestones, made without a model: what publishing reads, and nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_poro.checkpoint.export_report import REPORT_NAME, build_report
from megatron_poro.checkpoint.manifest import FileEntry, describe
from megatron_poro.config.load import to_yaml
from megatron_poro.config.run import ExportConfig, TrainConfig
from megatron_poro.parallel.topology import Topology
from tests.unit.checkpoint.fake_engine import CONFIG, run_state

RUN_CONFIG: TrainConfig = replace(CONFIG, export=ExportConfig(every_tokens=2000))
MILESTONES = {"2k": 31, "4k": 62, "6k": 93, "6400": 100}
"""Step of each milestone: 64 tokens a step, 100 steps."""

SHARDS = {"2k": 2, "4k": 1, "6k": 3, "6400": 1}
"""Tensor files of each export; they differ so that a stale one would show."""

PROVEN = {"met": True, "verdict": "logits differ by at most 1e-06 (tolerance 1e-05)."}


def make_run(folder: Path, labels: Sequence[str] = tuple(MILESTONES)) -> Path:
    """A run that has exported these milestones."""
    folder.mkdir(parents=True)
    (folder / "resolved.yaml").write_text(to_yaml(RUN_CONFIG), encoding="utf-8")
    write_metrics(folder, 100)
    for label in labels:
        make_export(folder, label)
    return folder


def make_export(run: Path, label: str, *, parity: Mapping[str, Any] | None = PROVEN, salt: str = "") -> Path:
    """The export of a milestone; ``salt`` makes it another one."""
    folder = run / "exports" / label
    folder.mkdir(parents=True)
    for name, content in export_files(label, salt).items():
        (folder / name).write_bytes(content)
    write_report(folder, label, parity=parity)
    return folder


def export_files(label: str, salt: str = "") -> dict[str, bytes]:
    """Everything in an export but its report."""
    count = SHARDS[label]
    names = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    files = {name: f"{label} {name} {salt}".encode() * 50 for name in (names if count > 1 else ["model.safetensors"])}
    if count > 1:
        files["model.safetensors.index.json"] = json.dumps({"weight_map": dict.fromkeys("abc", names[0])}).encode()
    return {**files, "config.json": b'{"model_type": "bloom"}', "tokenizer.json": b'{"version": "1.0"}'}


def write_report(folder: Path, label: str, *, parity: Mapping[str, Any] | None = PROVEN) -> None:
    """The report of an export, of the files that are there."""
    entries: dict[str, FileEntry] = {path.name: describe(path) for path in folder.iterdir() if path.name != REPORT_NAME}
    report = build_report(
        run_state(MILESTONES[label], milestone=label, topology=Topology(tensor=2, pipeline=1, data=2)),
        checkpoint=f"step_{MILESTONES[label]:08d}",
        model={"dtype": "bfloat16", "tensors": 29, "parameters": 34_216_949_760, "tensor_bytes": 0, "shards": 1},
        parity=parity,
        files=entries,
    )
    (folder / REPORT_NAME).write_text(json.dumps(report), encoding="utf-8")


def write_metrics(run: Path, steps: int) -> None:
    """One line for each step; the only source is called one, has 1000 tokens and is read in order."""
    lines = [
        {
            "train/step": step,
            "train/tokens": 64 * step,
            "train/loss": 5.0 - step / 100,
            "validation/loss": 5.5 - step / 100 if step % 10 == 0 else None,
            "data/one/consumed_tokens": 64 * step,
            "data/one/epochs": 64 * step / 1000,
            "perf/tokens_per_second": 1000.0 + step,
            "perf/model_tflops": 80.0,
            "perf/mfu": 0.4,
        }
        for step in range(1, steps + 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
