"""When a run saves, what it writes down about itself, and the proof after loading that it is the same run."""

import math

from megatron_poro.checkpoint import saving
from megatron_poro.checkpoint.state import RunState
from megatron_poro.config.identity import identity
from megatron_poro.config.load import to_yaml
from megatron_poro.errors import CheckpointError
from megatron_poro.logs import get_logger
from megatron_poro.schedule.milestones import milestone_at
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
    """Writes the checkpoint of the current step, unless there is one or no step was taken. All processes call it."""
    if run.progress.step == run.saved_step:
        return
    milestone = milestone_at(run.progress.step, run.plan.milestones)
    with run.tracker.outside_step():
        state = RunState(
            step=run.progress.step,
            consumed_samples=run.progress.samples,
            consumed_tokens=run.progress.tokens,
            optimizer_step=run.progress.step - run.optimizer_lag,
            config=to_yaml(run.config),
            identity=identity(run.config),
            topology=run.engine.groups.topology,
            tokenizer_fingerprint=run.tokenizer.fingerprint,
            milestone=None if milestone is None else milestone.label,
            check_loss=check_loss(run),
        )
        path = saving.save(run.store, run.engine, state, tokenizer=run.tokenizer)
    run.saved_step = run.progress.step
    logger.info("saved %s%s", path, "" if milestone is None else f", milestone {milestone.label}")


def check_loss(run: Run) -> float | None:
    """Loss of the run's very first samples, one step's worth, with the current weights; ``None`` if it is not finite.

    All processes call it.
    """
    result = run.engine.eval_step(run.first_batches.load(0) if run.engine.needs_data else [])
    loss = float(result.source_loss_sums.sum() / result.source_weights.sum())
    return loss if math.isfinite(loss) else None


def require_same_loss(run: Run, saved: float | None) -> None:
    """Proves after loading that model and data are those of the checkpoint. All processes call it.

    Args:
        run: a run that has just been loaded.
        saved: the loss in the checkpoint, ``None`` if it has none.

    Raises:
        CheckpointError: if the loss differs by more than a change of layout explains.
    """
    if saved is None:
        return
    found = check_loss(run)
    if found is None or not math.isclose(found, saved, rel_tol=CHECK_TOLERANCE):
        raise CheckpointError(
            f"after loading {run.store.path(run.progress.step)} the run's first samples have loss {found}, when it was "
            f"saved they had {saved}: the model or the data are not the same. Check data.train's files and the "
            "versions of torch and deepspeed."
        )
