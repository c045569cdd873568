"""The training loop. Everything that is not a step happens in :mod:`megatron_poro.train.periodic`."""

from megatron_poro.logs import get_logger
from megatron_poro.train.checkpointing import save
from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.periodic import after_step
from megatron_poro.train.run import Run
from megatron_poro.train.step_guard import require_taken

logger = get_logger(__name__)


def fit(run: Run) -> ExitCode:
    """Trains until the run's last step, ``run.stop_after_steps``, or a request to stop. All processes call it.

    Raises:
        EngineError: if a loss or gradient is not finite; no checkpoint is written after that.
        CheckpointError: if a checkpoint cannot be written.
        DataError: if a sample cannot be read.
    """
    try:
        while run.progress.step < run.last_step:
            if run.is_stopping():
                save(run)
                logger.info("stopped by a signal after step %d; start again to go on.", run.progress.step)
                return ExitCode.STOPPED
            train_step(run)
            after_step(run)
        logger.info("step %d of %d is done.", run.progress.step, run.plan.total_steps)
        return ExitCode.FINISHED
    finally:
        run.close()


def train_step(run: Run) -> None:
    """One optimizer step: plan it, read it, take it, note it."""
    step = run.plan.next_step(run.progress)
    with run.tracker.data_wait():
        microbatches = run.batches.load(run.progress.samples) if run.engine.needs_data else []
    result = run.engine.train_step(
        microbatches, learning_rate=step.learning_rate, consumed_samples=run.progress.samples
    )
    require_taken(result, run.progress)
    run.progress = run.plan.advance(run.progress)
    run.tracker.record_step(
        loss=result.loss,
        grad_norm=result.grad_norm,
        source_loss_sums=result.source_loss_sums,
        source_weights=result.source_weights,
        learning_rate=step.learning_rate,
    )
