"""Are exported models the same to transformers 5 and 4.57, bit for bit? Run as ``python -m tests.compatibility.model``.

Exports small models (in bf16 and fp32, in one file and in several), lets a fresh interpreter of each environment load
them, and compares what both say: every tensor's bytes, fp32 logits, a greedy continuation, the tokenizer's ids, and
that nothing was left unplaced. Makes the second environment itself; status 1 if anything differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from megatron_poro.checkpoint.hf_export import export_checkpoint
from megatron_poro.checkpoint.parity import prove_parity
from megatron_poro.config.run import Precision
from tests.compatibility import load_model
from tests.compatibility.environment import RELEASE, ROOT, interpreter
from tests.unit.checkpoint.bloom_checkpoint import TOKENIZER, save_bloom

MANY_SHARDS = 60_000
ONE_SHARD = 5_000_000_000


def main() -> int:
    """Prints a line for each model and a verdict; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default=RELEASE, help=f"of transformers to compare with (default: {RELEASE})")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="where it is, or is made")
    arguments = parser.parse_args()
    other = interpreter(arguments.environment, release=arguments.release)
    with tempfile.TemporaryDirectory() as folder:
        models = _export(Path(folder))
        answers = [_ask(python, models) for python in (Path(sys.executable), other)]
    releases = " and ".join(answer["transformers"] for answer in answers)
    ours, theirs = (answer["folders"] for answer in answers)
    problems = [problem for model in models for problem in _problems(model, ours[str(model)], theirs[str(model)])]
    for model in models:
        found = ours[str(model)]
        print(f"{model.name}: {len(found['tensors'])} tensors, {found['format']}, logits {found['logits'][-12:]}")
    for problem in problems:
        print(problem)
    print(f"transformers {releases}, torch {answers[0]['torch']}: {'DIFFERENT' if problems else 'the same bits'}")
    return 1 if problems else 0


def _export(folder: Path) -> list[Path]:
    models = []
    for precision in Precision:
        checkpoint = save_bloom(folder / precision.value, precision=precision)
        for name, limit in (("one_file", ONE_SHARD), ("sharded", MANY_SHARDS)):
            models.append(folder / f"{precision.value}_{name}")
            export_checkpoint(checkpoint, models[-1], prove=prove_parity, max_shard_bytes=limit)
    return models


def _ask(python: Path, models: list[Path]) -> dict[str, Any]:
    """What the transformers of an interpreter says."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [str(python), str(ROOT / "tests" / "compatibility" / Path(load_model.__file__).name), *map(str, models)],
        env={**environment, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def _problems(model: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    differing = [key for key in ours if ours[key] != theirs[key]]
    problems = [
        f"{model.name}: {key} is {ours[key]!s:.200} in one and {theirs[key]!s:.200} in the other" for key in differing
    ]
    wanted = {
        "class": "BloomForCausalLM",
        "format": "torch.bfloat16" if model.name.startswith(Precision.BF16.value) else "torch.float32",
        "unplaced": [],
        "head is tied": True,
        "ids": [TOKENIZER.encode(text) for text in load_model.TEXTS],
        "texts": list(load_model.TEXTS),
        "inputs": ["attention_mask", "input_ids"],
        "special": [TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id, TOKENIZER.unk_id],
        "is fast": True,
    }
    return problems + [
        f"{model.name}: {key} is {theirs[key]!s:.200}, not {value!s:.200}"
        for key, value in wanted.items()
        if theirs[key] != value
    ]


if __name__ == "__main__":
    sys.exit(main())
