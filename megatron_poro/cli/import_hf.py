"""``poro import``: a Hugging Face model becomes the checkpoint of step 0, from which a run goes on at any layout."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_poro.checkpoint.hf_import import import_hugging_face
from megatron_poro.checkpoint.locating import CHECKPOINTS_FOLDER
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.logs import configure


def main(argv: Sequence[str]) -> int:
    """Runs ``poro import`` with the arguments after it; returns the exit status."""
    arguments = _parser().parse_args(argv)
    configure()
    path = import_hugging_face(arguments.folder, CheckpointStore(arguments.output))
    reader = CheckpointReader(path)
    model = reader.model
    print(
        f"{path}: {len(reader.shapes)} tensors, {model.num_layers} layers, hidden size {model.hidden_size}, "
        f"{model.num_heads} heads, vocabulary {model.vocab_size}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro import",
        description="Writes a Hugging Face model as a checkpoint: masters are the weights, moments zero, step 0.",
    )
    parser.add_argument("folder", type=Path, metavar="HF_DIR", help="config.json, tokenizer and weights")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="CHECKPOINT_DIR",
        help=f"folder of checkpoints to add to; <run.root>/<run.name>/{CHECKPOINTS_FOLDER} makes a run go on from it",
    )
    return parser
