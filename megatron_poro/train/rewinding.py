"""Going back by itself: what a run does when step after step has to be passed over.

Weights that a bad batch has led astray do not recover by leaving out what comes next. The run goes back to a checkpoint
before the trouble and does not learn from the steps that led there. At the same place it goes further back each time,
and after a few times it ends, because only a person can tell bad data from a bad learning rate.

Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, section 5.1: restart about 100 steps before a spike and skip the
batches around it.
"""

from megatron_poro.config.guards import GuardsConfig
from megatron_poro.errors import DivergedError
from megatron_poro.logs import get_logger
from megatron_poro.train.checkpointing import wait_for_save
from megatron_poro.train.lineage import RunRecord, StepRange
from megatron_poro.train.restoring import restore
from megatron_poro.train.run import Run

REASON = "steps could not be taken"
"""How the rewinds begin that a run makes by itself, in ``run.json``."""

logger = get_logger(__name__)


def rewind(run: Run) -> None:
    """Goes back to a checkpoint before the steps that were passed over last. All processes call it.

    Raises:
        DivergedError: if going back has not helped, or there is no checkpoint to go back to.
        CheckpointError: if a file cannot be moved or read.
    """
    wait_for_save(run)
    first, last = run.guard.row[0], run.guard.row[-1]
    before = rewinds_at(run.lineage.record, first, run.config.guards)
    if len(before) >= run.config.guards.max_rewinds:
        raise DivergedError(
            _sentence(first, last, f"The run has gone back {len(before)} times here (guards.max_rewinds)")
        )
    # what was left out before is of no use to go back to: the trouble came from before it, too
    begin = min([first, *(skip.first for skip in before)]) - (run.config.guards.rewind_margin_steps << len(before))
    to = _checkpoint_before(run, begin, otherwise=first)
    if to is None:
        raise DivergedError(_sentence(first, last, "There is no checkpoint before them to go back to"))
    skip = StepRange(max(begin, to + 1), last)
    logger.warning("steps %d to %d were passed over: going back to step %d, skipping %s", first, last, to, skip)
    run.phase("going back")
    wait_for_save(run)
    run.tracker.flush(run.position)
    with run.processes.world.together():
        run.lineage.rewind(to, skip, reason=f"{REASON}: {first} to {last}")
    run.profile.drop()  # what it has measured belongs to steps that are abandoned
    restored = restore(run)
    assert restored, f"the checkpoint of step {to} is gone"
    assert run.progress.step == to, f"rewound to step {to}, restored step {run.progress.step}"
    run.tracker.rewound(run.position)


def rewinds_at(record: RunRecord, step: int, guards: GuardsConfig) -> list[StepRange]:
    """What a run has left out when it went back by itself at the place of a step, once for each time."""
    return [
        one.skip
        for one in record.rewinds
        if one.skip is not None
        and one.reason.startswith(REASON)
        and one.to < step <= one.skip.last + guards.spike_window_steps
    ]


def _checkpoint_before(run: Run, step: int, *, otherwise: int) -> int | None:
    """The newest valid checkpoint before a step, or else before another one. All processes call it, alike."""
    found: int | None = None
    with run.processes.world.together():
        if run.processes.world.is_first:
            for limit in (step, otherwise):
                steps = [one for one in run.store.steps() if one < limit]
                path, _ = run.store.newest_valid(steps=steps)
                if path is not None:
                    found = next(one for one in steps if run.store.path(one) == path)
                    break
    return run.processes.world.gather(found)[0]


def _sentence(first: int, last: int, why: str) -> str:
    return (
        f"steps {first} to {last} could not be taken: their loss or gradient was not finite, or a spike. {why}. Look "
        "at the samples in the run's folder skipped/, lower schedule.learning_rate, or go further back with "
        "`poro rewind`."
    )
