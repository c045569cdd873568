"""The training loop. Everything that is not a step happens in :mod:`megatron_poro.train.periodic`."""

import math

from megatron_poro.engine.engine import StepResult
from megatron_poro.errors import EngineError
from megatron_poro.logs import get_logger
from megatron_poro.parallel.step_clock import Part
from megatron_poro.train.checkpointing import advance_save, save, save_for_good, wait_for_save
from megatron_poro.train.control import STOPPING, Notice
from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.periodic import after_step, measured_step, tell_compilation, watch_stragglers
from megatron_poro.train.rewinding import rewind
from megatron_poro.train.run import Run
from megatron_poro.train.skipped import report_skipped

logger = get_logger(__name__)


def fit(run: Run) -> ExitCode:
    """Trains until the run's last step, ``run.stop_after_steps``, or a request to stop. All processes call it.

    Raises:
        EngineError: if a loss or gradient is not finite and such steps may not be passed over; nothing is saved then.
        DivergedError: if step after step has to be passed over and going back does not help.
        ReplicaError: if processes do not hold the same values; nothing is saved then.
        CheckpointError: if the last checkpoint cannot be written; one before it may fail.
        DataError: if a sample cannot be read.
    """
    try:
        while run.progress.step < run.last_step:
            run.phase("boundary")
            asked = run.control.agree()
            run.folder.require_ours(asked)
            advance_save(run, asked)
            if asked & STOPPING:
                run.phase("last save")
                save_for_good(run)
                return _stopped(run, asked)
            if Notice.SAVE_FILE in asked:
                run.phase("saving")
                save(run)
                run.control.obeyed(asked)
            train_step(run)
            if run.guard.is_stuck:
                rewind(run)
            else:
                after_step(run)
            run.processes.watchdog.started()
        run.phase("last save")
        save_for_good(run)
        run.control.obeyed(STOPPING | Notice.SAVE_FILE)
        logger.info("step %d of %d is done.", run.progress.step, run.plan.total_steps)
        return ExitCode.FINISHED
    finally:
        run.close()


def _stopped(run: Run, asked: Notice) -> ExitCode:
    """Says who asked the run to stop. A person's wish comes before a scheduler's, which would start the run again."""
    run.control.obeyed(asked)
    if Notice.STOP_FILE in asked:
        logger.info("stopped by its control file after step %d; start again to go on.", run.progress.step)
        return ExitCode.FINISHED
    logger.info("stopped by a signal after step %d; start again to go on.", run.progress.step)
    return ExitCode.STOPPED


def train_step(run: Run) -> None:
    """One optimizer step: plan it, read it, take it, note it. Or pass over it."""
    if run.lineage.is_skipped(run.progress.step + 1):
        _pass_over(run, computed=False)
        return
    step = run.plan.next_step(run.progress)
    with measured_step(run):
        run.phase("data")
        with run.tracker.data_wait(), run.engine.groups.clock.running(Part.LOADING):
            microbatches = run.batches.load(run.progress.samples) if run.engine.needs_data else []
        run.phase("step")
        result = run.engine.train_step(
            microbatches,
            learning_rate=step.learning_rate,
            consumed_samples=run.progress.samples,
            gate=run.guard.accepts,
        )
    watch_stragglers(run)
    if not run.has_stepped:
        run.has_stepped = True
        tell_compilation(run)
    if not result.taken:
        _refused(run, result)
        return
    run.guard.accepted(float(result.loss), float(result.grad_norm))
    run.progress = run.plan.advance(run.progress)
    run.tracker.record_step(
        loss=result.loss,
        grad_norm=result.grad_norm,
        source_loss_sums=result.source_loss_sums,
        source_weights=result.source_weights,
        learning_rate=step.learning_rate,
    )


def _refused(run: Run, result: StepResult) -> None:
    """A step that changed nothing: passes over it, or ends the run. All processes call it."""
    objections = run.processes.world.gather(run.guard.objection(float(result.loss), float(result.grad_norm)))
    reason = next((objection for objection in objections if objection is not None), "the gate of a process is closed")
    finite = run.processes.world.gather(math.isfinite(result.loss) and math.isfinite(result.grad_norm))
    if not all(finite) and not run.config.guards.skip_not_finite:
        wait_for_save(run)
        raise EngineError(
            f"step {run.progress.step + 1}, which begins at sample {run.progress.samples}, cannot be taken: {reason}. "
            "No weight was changed and nothing is saved after this; look at those samples, or lower "
            "schedule.learning_rate or engine.precision=fp32, and resume from the last checkpoint."
        )
    if run.processes.world.is_first:
        report_skipped(run, result, reason=reason)
    run.guard.passed_over(run.progress.step + 1)
    _pass_over(run, computed=True)


def _pass_over(run: Run, *, computed: bool) -> None:
    """Counts a step whose samples are not learned from: data and schedule go on, the optimizer does not."""
    run.progress = run.plan.advance(run.progress)
    run.optimizer_lag += 1
    run.skipped_steps.append(run.progress.step)
    run.tracker.record_skipped(computed=computed)
