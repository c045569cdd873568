"""When a run saves, what it writes down about itself, and the proof after loading that it is the same run.

A save that fails does not end a run: the weights are in memory, the checkpoints before it are intact, and the next one
may succeed. Only what the run is left with at its end counts, and what no later save could repair (``UnsavableError``).
"""

import dataclasses
import math
from pathlib import Path

from megatron_poro.checkpoint import saving
from megatron_poro.checkpoint.fragment import decayed_names
from megatron_poro.checkpoint.state import RunState
from megatron_poro.checkpoint.store import step_of
from megatron_poro.config.identity import identity
from megatron_poro.config.load import to_yaml
from megatron_poro.data.batch import Batch
from megatron_poro.errors import CheckpointError, UnsavableError
from megatron_poro.logs import get_logger
from megatron_poro.schedule.milestones import milestone_at
from megatron_poro.train.control import Notice
from megatron_poro.train.run import Run

logger = get_logger(__name__)

CHECK_TOLERANCE = 0.02
"""Largest relative difference of the check loss after loading. A new layout or precision rounds differently, by far
less; a model that is not the same is far off."""


def is_save_due(run: Run, step: int) -> bool:
    """Every ``checkpoint.every_steps`` steps, at milestones, at the end, and where this process ends."""
    every = run.config.checkpoint.every_steps
    return (
        (every > 0 and step % every == 0)
        or milestone_at(step, run.plan.milestones) is not None
        or step == run.last_step
    )


def save(run: Run) -> None:
    """Saves the current step, or begins to, unless it is saved or being saved. All processes call it.

    One save is under way at most: the one before is waited for. One that fails is told and counted, and that is all.

    Raises:
        UnsavableError: if no later save could succeed either.
    """
    if run.progress.step in (run.saved_step, run.saver.step):
        return
    wait_for_save(run)
    with run.tracker.saving():
        try:
            if run.config.checkpoint.asynchronous:
                run.saver.start(run.engine, _state(run), tokenizer=run.tokenizer)
            else:
                _committed(run, saving.save(run.store, run.engine, _state(run), tokenizer=run.tokenizer))
        except CheckpointError as error:
            _failed(run, error)


def advance_save(run: Run, agreed: Notice) -> None:
    """Brings the save under way further, if the writers of all processes are done. All processes call it.

    Args:
        run: whose boundary this is.
        agreed: what the processes told each other at it.

    Raises:
        UnsavableError: as :func:`save`.
    """
    if run.saver.step is None or Notice.WRITING in agreed:
        return
    with run.tracker.saving():
        try:
            _committed(run, run.saver.advance())
        except CheckpointError as error:
            _failed(run, error)


def wait_for_save(run: Run) -> None:
    """Waits until no save is under way. All processes call it.

    Raises:
        UnsavableError: as :func:`save`.
    """
    with run.tracker.saving():
        try:
            _committed(run, run.saver.finish())
        except CheckpointError as error:
            _failed(run, error)


def save_for_good(run: Run) -> None:
    """Makes sure that the current step is on disk: the last save of a run. All processes call it.

    Raises:
        CheckpointError: if it is not, after one more attempt.
    """
    wait_for_save(run)
    if run.progress.step != run.saved_step:
        with run.tracker.saving():
            _committed(run, saving.save(run.store, run.engine, _state(run), tokenizer=run.tokenizer))


def _state(run: Run) -> RunState:
    milestone = milestone_at(run.progress.step, run.plan.milestones)
    # one microbatch of each replica: a proof that costs a fraction of a step
    samples = run.config.engine.microbatch_samples * run.engine.groups.data.size
    return RunState(
        step=run.progress.step,
        consumed_samples=run.progress.samples,
        consumed_tokens=run.progress.tokens,
        optimizer_step=run.progress.step - run.optimizer_lag,
        config=to_yaml(run.config),
        identity=identity(run.config),
        topology=run.engine.groups.topology,
        tokenizer_fingerprint=run.tokenizer.fingerprint,
        milestone=None if milestone is None else milestone.label,
        check_loss=check_loss(run, samples),
        check_samples=samples,
        decayed=decayed_names(run.engine.fragments(), run.processes.world),
        run_id=run.lineage.run_id,
        lineage=run.lineage.number,
        skipped_steps=tuple(run.skipped_steps),
        guard=run.guard.state(),
    )


def _committed(run: Run, path: Path | None) -> None:
    """Notes the checkpoint that has just been completed, if there is one."""
    if path is None:
        return
    step = step_of(path)
    assert step is not None, f"{path} is no checkpoint"
    run.saved_step = step
    run.lineage.committed(step)
    milestone = milestone_at(step, run.plan.milestones)
    logger.info("saved %s%s", path, "" if milestone is None else f", milestone {milestone.label}")


def _failed(run: Run, error: CheckpointError) -> None:
    """Tells and counts a save that failed, unless none can succeed any more."""
    if isinstance(error, UnsavableError):
        raise error
    run.tracker.record_failed_save()
    logger.error("%s The run goes on; it saves again when the next checkpoint is due.", error)


def check_loss(run: Run, samples: int) -> float | None:
    """Loss of the run's very first samples with the current weights; ``None`` if it is not finite.

    The same samples on every layout: where they do not fill the microbatches of all replicas, the rest counts for
    nothing. All processes call it.

    Args:
        run: whose model and data are asked.
        samples: how many, at most those of one step.
    """
    size, data = run.config.engine.microbatch_samples, run.engine.groups.data
    batches = run.first_batches.load(0)[: -(-samples // (size * data.size))] if run.engine.needs_data else []
    counted = [
        _first_rows(batch, samples - (index * data.size + data.rank) * size) for index, batch in enumerate(batches)
    ]
    result = run.engine.eval_step(counted)
    loss = float(result.source_loss_sums.sum() / result.source_weights.sum())
    return loss if math.isfinite(loss) else None


def _first_rows(batch: Batch, count: int) -> Batch:
    """A microbatch of whose samples only the first count."""
    mask = batch.loss_mask.clone()
    mask[max(count, 0) :] = 0.0
    return dataclasses.replace(batch, loss_mask=mask)


def require_same_loss(run: Run, state: RunState) -> None:
    """Proves after loading that model and data are those of the checkpoint. All processes call it.

    Args:
        run: a run that has just been loaded.
        state: what the checkpoint says of the run.

    Raises:
        CheckpointError: if the loss differs by more than a change of layout explains.
    """
    if state.check_loss is None:
        return
    found = check_loss(run, state.check_samples or run.plan.samples_per_step)
    if found is None or not math.isclose(found, state.check_loss, rel_tol=CHECK_TOLERANCE):
        raise CheckpointError(
            f"after loading {run.store.path(run.progress.step)} the run's first samples have loss {found}, when it was "
            f"saved they had {state.check_loss}: the model or the data are not the same. Check data.train's files and "
            "the versions of torch and deepspeed."
        )
