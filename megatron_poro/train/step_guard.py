"""Which steps may change the weights, and what happens when one may not."""

from megatron_poro.engine.engine import StepResult
from megatron_poro.errors import EngineError
from megatron_poro.schedule.progress import Progress


def require_taken(result: StepResult, progress: Progress) -> None:
    """Reports a step that could not be taken because its loss or gradient is not a number.

    Args:
        result: of the step.
        progress: of the run before it.

    Raises:
        EngineError: naming both values and the samples of the step.
    """
    if not result.taken:
        raise EngineError(
            f"step {progress.step + 1}, which begins at sample {progress.samples}, has loss {float(result.loss)} and "
            f"gradient norm {float(result.grad_norm)}: not finite. No weight was changed and nothing is saved after "
            "this; look at those samples, or lower schedule.learning_rate or engine.precision=fp32, and resume from "
            "the last checkpoint."
        )
