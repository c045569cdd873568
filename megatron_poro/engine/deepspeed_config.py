"""Our settings as DeepSpeed's dictionary. Pure; every key says why it has its value.

Adding up gradients, ZeRO-1, clipping and the step are ours: what is left is the format of the weights, the numbers of a
batch, and what stages send each other.
"""

from typing import Any

from megatron_poro.config.run import PipelineSchedule, Precision
from megatron_poro.errors import EngineError

MINIMUM_DEEPSPEED = (0, 19, 3)
"""Up to 0.19.2 the pipeline engine divides gradients by the accumulation steps once per stage
(DeepSpeed issue 8152)."""

MINIMUM_DUALPIPEV = (0, 19, 8)
"""The first release with ``deepspeed.runtime.pipe.dualpipev``."""


def deepspeed_config(
    *, precision: Precision, microbatch_samples: int, microbatches: int, data_size: int
) -> dict[str, Any]:
    """The dictionary for ``PipelineEngine``.

    Args:
        precision: format of weights and activations.
        microbatch_samples: samples in one forward pass.
        microbatches: accumulation steps.
        data_size: replicas.
    """
    return {
        "train_micro_batch_size_per_gpu": microbatch_samples,
        "gradient_accumulation_steps": microbatches,
        "train_batch_size": microbatch_samples * microbatches * data_size,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": precision is Precision.BF16},
        # nothing is wrapped: megatron_poro.engine.deepspeed_engine.OwnOptimizer
        "zero_optimization": {"stage": 0},
        # whole activations between stages: partitioning them over the tensor group is refused by DualPipeV
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
        # metrics are ours
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def require_deepspeed(version: str, pipeline_schedule: PipelineSchedule) -> None:
    """Refuses a DeepSpeed whose pipeline gradients are wrong, or that lacks the schedule.

    Raises:
        EngineError: naming the version found and the lowest that is right.
    """
    found = tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())
    dual = pipeline_schedule is PipelineSchedule.DUALPIPEV
    if found < MINIMUM_DEEPSPEED:
        lowest, reason = (
            MINIMUM_DEEPSPEED,
            ("before it the pipeline engine divides gradients by the accumulation steps once per stage"),
        )
    elif dual and found < MINIMUM_DUALPIPEV:
        lowest, reason = MINIMUM_DUALPIPEV, "engine.pipeline_schedule=dualpipev came with it; 1f1b runs on yours"
    else:
        return
    needed = ".".join(map(str, lowest))
    raise EngineError(
        f"deepspeed {version} is installed, at least {needed} is needed: {reason}. "
        f"Run: pip install 'deepspeed>={needed}'"
    )
