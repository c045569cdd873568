"""``poro import``: a model from elsewhere becomes the checkpoint of step 0, from which a run goes on at any layout."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_poro.checkpoint.hf_import import import_hugging_face
from megatron_poro.checkpoint.locating import CHECKPOINTS_FOLDER
from megatron_poro.checkpoint.megatron_import import MegatronImport, import_megatron, is_megatron
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.errors import CheckpointError
from megatron_poro.logs import configure

FORMATS = ("huggingface", "megatron")


def main(argv: Sequence[str]) -> int:
    """Runs ``poro import`` with the arguments after it; returns the exit status."""
    arguments = _parser().parse_args(argv)
    configure()
    store = CheckpointStore(arguments.output)
    form = arguments.format or ("megatron" if is_megatron(arguments.folder) else "huggingface")
    if form == "megatron":
        imported = import_megatron(arguments.folder, store, described_by=arguments.config or arguments.folder)
        path = imported.checkpoint
        _tell_of_copies(imported)
    elif arguments.config is not None:
        raise CheckpointError(
            f"--config {arguments.config} is for a Megatron-DeepSpeed checkpoint: {arguments.folder} is a Hugging Face "
            "folder and has a config.json of its own."
        )
    else:
        path = import_hugging_face(arguments.folder, store)
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
        description="Writes a model as a checkpoint: masters are the weights, moments zero, step 0. Reads Hugging Face "
        "folders (config.json, tokenizer, weights) and Megatron-DeepSpeed's layer_SS-model_TT-model_states.pt files.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="a Hugging Face folder, or global_step<N> or the folder above it"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="CHECKPOINT_DIR",
        help=f"folder of checkpoints to add to; <run.root>/<run.name>/{CHECKPOINTS_FOLDER} makes a run go on from it",
    )
    parser.add_argument("--format", choices=FORMATS, help="what DIR holds (default: told by the names of its files)")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="HF_DIR",
        help="of a Megatron-DeepSpeed checkpoint: the folder with config.json and the tokenizer (default: DIR)",
    )
    return parser


def _tell_of_copies(imported: MegatronImport) -> None:
    """How far the copies on the tensor ranks had drifted apart, a line for each parameter, the worst first."""
    apart = {name: drift for name, drift in imported.drift.items() if drift != 0}
    for name in sorted(apart, key=lambda name: -apart[name]):
        print(f"{name}: its copies differ by up to {apart[name]:.3g}")
    print(
        f"{imported.tensor_size} tensor ranks: {len(imported.drift)} parameters are on all of them and were averaged, "
        f"{len(apart)} of these differ; {imported.padding_rows} padding rows of the embedding dropped"
    )
