"""Puts a run back to where one of its checkpoints left it: at its start, and when it goes back by itself."""

from megatron_poro.checkpoint.resuming import resume
from megatron_poro.logs import get_logger
from megatron_poro.schedule.progress import Progress
from megatron_poro.train.checkpointing import require_same_loss
from megatron_poro.train.run import Run

logger = get_logger(__name__)


def restore(run: Run) -> bool:
    """Puts a run back to its newest valid checkpoint; False if it has none. All processes call it.

    Raises:
        CheckpointError: on every process alike, if there are checkpoints but none that this run can go on from.
    """
    state = resume(run.store, run.engine, config=run.config, tokenizer_fingerprint=run.tokenizer.fingerprint)
    if state is None:
        return False
    run.progress = Progress(state.step, state.consumed_samples, state.consumed_tokens)
    run.optimizer_lag = state.step - state.optimizer_step
    run.saved_step = state.step
    run.skipped_steps = list(state.skipped_steps)
    run.guard.restore(state.guard)
    require_same_loss(run, state)
    logger.info("resumed after step %d from %s", state.step, run.store.path(state.step))
    return True
