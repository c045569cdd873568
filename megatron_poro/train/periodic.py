"""What happens every so many steps: validate, log, save. What is due is arithmetic on the step, alike everywhere."""

import torch
from torch import Tensor

from megatron_poro.train.checkpointing import is_save_due, save
from megatron_poro.train.run import Run


def after_step(run: Run) -> None:
    """Does what is due after a step.

    A line of metrics also ends where a validation or a checkpoint is, so that no line ever spans a step from which a
    run may resume.
    """
    step = run.progress.step
    validating, saving_now = is_validation_due(run, step), is_save_due(run, step)
    if validating:
        validate(run)
    if validating or saving_now or step % run.config.metrics.log_every_steps == 0:
        run.tracker.flush(run.position)
    if saving_now:
        save(run)


def is_validation_due(run: Run, step: int) -> bool:
    """Every ``validation.every_steps`` steps and at the end of the run."""
    every = run.config.validation.every_steps
    return run.validation is not None and (step % every == 0 or step == run.plan.total_steps)


def validate(run: Run) -> None:
    """Computes the loss of the validation samples and hands it to the tracker.

    A request to stop is looked for between portions; a validation that is cut short reports nothing.
    """
    assert run.validation is not None, "validation is off"
    with run.tracker.outside_step():
        batches = run.validation.batches.load(0) if run.engine.needs_data else []
        sums: list[tuple[Tensor, Tensor]] = []
        portion = run.plan.microbatches
        for first in range(0, run.validation.microbatches, portion):
            if run.is_stopping():
                return
            result = run.engine.eval_step(batches[first : first + portion])
            sums.append((result.source_loss_sums, result.source_weights))
        loss_sums, weights = (torch.stack(list(column)).sum(dim=0) for column in zip(*sums, strict=True))
        run.tracker.record_validation(loss_sums, weights)
