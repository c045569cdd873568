"""Which steps become published checkpoints: ``100B``, ``200B`` ... and the end."""

from dataclasses import dataclass

from megatron_poro.config.run import LabelUnit
from megatron_poro.units import format_count


@dataclass(frozen=True)
class Milestone:
    """A step whose checkpoint is kept and exported.

    Attributes:
        label: the number of tokens it stands for, ``400B``; names its folder and its branch.
        step: completed optimizer steps.
        tokens: tokens consumed by them, at most one step fewer than the label says.
    """

    label: str
    step: int
    tokens: int


def milestones(
    *, every_tokens: int, total_tokens: int, tokens_per_step: int, label_unit: LabelUnit = LabelUnit.AUTO
) -> tuple[Milestone, ...]:
    """The milestones of a run, in order; the last one is its end, labelled with ``total_tokens``.

    Args:
        every_tokens: distance of the labels, at least ``tokens_per_step``; 0 gives the end only.
        total_tokens: length of the run.
        tokens_per_step: tokens of one optimizer step.
        label_unit: what the labels count in.
    """
    assert every_tokens == 0 or every_tokens >= tokens_per_step, "milestones closer than steps (config.validate)"
    last_step = total_tokens // tokens_per_step
    labels = range(every_tokens, total_tokens, every_tokens) if every_tokens else range(0)
    # A label in the last, incomplete step would be the end under a second name.
    planned = [(label, label // tokens_per_step) for label in labels if label // tokens_per_step < last_step]
    unit = None if label_unit is LabelUnit.AUTO else label_unit.value
    return tuple(
        Milestone(format_count(label, unit=unit), step, step * tokens_per_step)
        for label, step in (*planned, (total_tokens, last_step))
    )


def milestone_at(step: int, among: tuple[Milestone, ...]) -> Milestone | None:
    """The milestone that a step is, if it is one."""
    return next((milestone for milestone in among if milestone.step == step), None)
