"""What the pipeline engine costs where there is nothing to cut: a step at 1 x 1 x 1 against the same in plain PyTorch.

Run from the checkout, on an idle machine: ``python -m benchmarks.engine_overhead`` (options: ``--microbatches 2 4
--precision bf16 --batch 1 --sequence 512``). The same model, config and batches, one engine to a process, in turns
(:mod:`benchmarks.turns`). What is over are DeepSpeed's instructions and buffers, and what our flat buckets cost.
Processor time is that of all threads, those that wait for one another included. Ends with status 1 if the losses differ
by more than rounding does; then the engines have not done the same work.
"""

import argparse
import statistics
import sys
from functools import partial

import torch

from benchmarks.our_step import Shape, our_step
from benchmarks.turns import race
from megatron_poro.config.run import EngineKind, Precision

ALLOWED = 0.05
"""The share of a plain step that the pipeline engine may take on top."""

TOLERANCE = {Precision.BF16: 5e-3, Precision.FP32: 1e-4}
"""Largest relative difference of the last step's losses."""


def main() -> int:
    """Prints a Markdown table; the status says whether both engines have trained alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1, help="samples of a microbatch")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--precision", type=Precision, default=Precision.BF16, choices=list(Precision))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="of each engine in a round")
    arguments = parser.parse_args()
    print(
        f"{arguments.precision.value}, microbatches of {arguments.batch} x {arguments.sequence}, "
        f"{torch.get_num_threads()} threads; at most {ALLOWED:.0%} more is the aim"
    )
    print("| microbatches | local s | pipeline engine s | ratio (lowest to highest round) | of processor time | loss |")
    print("|---|---|---|---|---|---|")
    alike = True
    for count in arguments.microbatches:
        shape = Shape(arguments.sequence, arguments.batch, arguments.precision, microbatches=count)
        turns, _ = race(
            {kind.value: partial(our_step, shape, kind=kind) for kind in (EngineKind.LOCAL, EngineKind.DEEPSPEED)},
            rounds=arguments.rounds,
            steps=arguments.steps,
        )
        local, pipeline = turns[EngineKind.LOCAL.value], turns[EngineKind.DEEPSPEED.value]
        ratios = [theirs.seconds / ours.seconds for ours, theirs in zip(local, pipeline, strict=True)]
        computed = statistics.median(
            theirs.processor_seconds / ours.processor_seconds for ours, theirs in zip(local, pipeline, strict=True)
        )
        difference = abs(pipeline[-1].loss - local[-1].loss) / local[-1].loss
        alike = alike and difference <= TOLERANCE[shape.precision]
        seconds = [statistics.median(turn.seconds for turn in engine) for engine in (local, pipeline)]
        print(
            f"| {count} | {seconds[0]:.3f} | {seconds[1]:.3f} "
            f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | {computed:.3f} "
            f"| {local[-1].loss:.4f}, {difference:.0e} apart |",
            flush=True,
        )
    return 0 if alike else 1


if __name__ == "__main__":
    sys.exit(main())
