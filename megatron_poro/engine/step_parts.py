"""What the time of each instruction of DeepSpeed's schedules counts to, told to the clock of a step."""

from collections.abc import Mapping
from typing import Any

from megatron_poro.parallel.step_clock import Part, StepClock

PARTS: Mapping[str, Part] = {
    "LoadMicroBatch": Part.LOADING,
    "ForwardPass": Part.COMPUTE,
    "BackwardPass": Part.COMPUTE,
    "WeightGradientPass": Part.COMPUTE,  # of a schedule that puts weight gradients off, as those with Take and Post
    "TakeActivation": Part.PIPELINE,
    "PostActivation": Part.PIPELINE,
    "TakeGradient": Part.PIPELINE,
    "PostGradient": Part.PIPELINE,
    "SendActivation": Part.PIPELINE,
    "RecvActivation": Part.PIPELINE,
    "SendGrad": Part.PIPELINE,
    "RecvGrad": Part.PIPELINE,
    "CommitP2P": Part.PIPELINE,  # DualPipeV's, where what it sends and receives really travels
    "ReduceTiedGrads": Part.PIPELINE,
    "ReduceGrads": Part.DATA,
    "OptimizerStep": Part.OPTIMIZER,
}
"""By the name of the instruction: older DeepSpeeds do not have all of them."""


def tell_clock(engine: Any, clock: StepClock) -> None:
    """Makes the instructions of a DeepSpeed engine, and what it does after the last one, tell what they are."""
    engine._INSTRUCTION_MAP = {
        kind: clock.timed(run, PARTS.get(kind.__name__, Part.OTHER)) for kind, run in engine._INSTRUCTION_MAP.items()
    }
    engine._aggregate_total_loss = clock.timed(engine._aggregate_total_loss, Part.AGREEMENT)
