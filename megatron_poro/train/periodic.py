"""What happens every so many steps: validate, log, save. What is due is arithmetic on the step, alike everywhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from megatron_poro.logs import get_logger
from megatron_poro.parallel.step_clock import Part
from megatron_poro.schedule.milestones import milestone_at
from megatron_poro.train.checkpointing import is_save_due, save
from megatron_poro.train.replicas import check_replicas
from megatron_poro.train.run import Run
from megatron_poro.train.stragglers import BLOCK_STEPS, BLOCKS_IN_SUCCESSION
from megatron_poro.units import format_seconds

logger = get_logger(__name__)


def after_step(run: Run) -> None:
    """Does what is due after a step.

    A line of metrics also ends where a validation or a checkpoint is, so that no line ever spans a step from which a
    run may resume.
    """
    step = run.progress.step
    if run.profile.is_due(step):
        run.phase("profile")
        with run.tracker.outside_step():
            run.profile.write()
    validating, saving_now = is_validation_due(run, step), is_save_due(run, step)
    if run.guard.row and step != run.last_step and milestone_at(step, run.plan.milestones) is None:
        saving_now = False  # the weights have not changed, and each save removes one that the run could go back to
    if is_replica_check_due(run, step, saving=saving_now):
        run.phase("replica check")
        check_replicas(run.engine, step=step, peers=run.processes.watchdog.peers)
    if validating:
        validate(run)
    if validating or saving_now or step % run.config.metrics.log_every_steps == 0:
        run.tracker.flush(run.position)
    if saving_now:
        run.phase("saving")
        save(run)


def is_replica_check_due(run: Run, step: int, *, saving: bool) -> bool:
    """Every ``guards.replica_check_every_steps`` steps, and before a save: what is saved has been compared."""
    every = run.config.guards.replica_check_every_steps
    return every > 0 and (saving or step % every == 0)


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
            run.phase("validation")
            if run.is_stopping():
                return
            result = run.engine.eval_step(batches[first : first + portion])
            sums.append((result.source_loss_sums, result.source_weights))
        loss_sums, weights = (torch.stack(list(column)).sum(dim=0) for column in zip(*sums, strict=True))
        run.tracker.record_validation(loss_sums, weights)


@contextmanager
def measured_step(run: Run) -> Iterator[None]:
    """Around the next step: measures where its time goes, see ``profile.steps``. All processes call it."""
    number = run.progress.step + 1
    if run.profile.must_prepare(number):
        run.phase("profile")
        with run.tracker.outside_step():
            run.profile.prepare(number)
    with run.profile.step(number):
        yield


def tell_compilation(run: Run) -> None:
    """Says what compiling has cost, after the first step of a process."""
    if run.config.engine.compile:
        seconds = run.engine.groups.clock.last.seconds_of(Part.COMPUTE)
        logger.info("the first step computed for %s: engine.compile=true compiled its blocks", format_seconds(seconds))


def watch_stragglers(run: Run) -> None:
    """Counts the last step, and names whoever is slow. All processes call it after each step that was computed."""
    found = run.stragglers.record(run.engine.groups.clock.last.seconds_of(Part.COMPUTE), run.processes.world)
    for one in run.stragglers.named(found):
        steps = BLOCK_STEPS * BLOCKS_IN_SUCCESSION
        logger.warning(
            "%s has computed %.2f times as long as the others of its stage for %d steps (%s a step): its device is "
            "slow, or something else runs there",
            run.processes.watchdog.peers[one.rank],
            one.ratio,
            steps,
            format_seconds(one.seconds),
        )
    if found:
        run.tracker.record_slowest_process(max(one.ratio for one in found))
