"""``poro generate``: continues a prompt with a trained model, from a checkpoint or an export, in one process."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_poro import logs
from megatron_poro.evaluate.generation import generate_text
from megatron_poro.evaluate.loading import load_model

logger = logs.get_logger(__name__)


def main(argv: Sequence[str]) -> int:
    """Writes prompt and continuation to stdout as it comes; returns the exit status.

    Raises:
        PoroError: for a folder that holds no model, or a number that makes no sense.
    """
    arguments = _parser().parse_args(argv)
    logs.configure()
    has_gpu = torch.cuda.is_available()
    loaded = load_model(
        arguments.model,
        device="cuda" if has_gpu else "cpu",
        # bf16 is slow on a CPU that emulates it, and a model that fits one is small
        dtype=torch.bfloat16 if has_gpu else torch.float32,
    )
    logger.info("model: %s", loaded.origin)
    pieces = generate_text(
        loaded,
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    sys.stdout.write(arguments.prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poro generate", description="Continues a prompt with a trained model.")
    parser.add_argument(
        "model", type=Path, metavar="CHECKPOINT_OR_RUN", help="run folder, step_... folder, or exported folder"
    )
    parser.add_argument("prompt", help="text to continue; '' begins a document")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="at most so many tokens (64)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token, 1 draws (0)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws (0)")
    return parser
