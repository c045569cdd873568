"""Which steps become published checkpoints: ``100B``, ``200B`` ... and the end."""

from dataclasses import dataclass

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


def milestones(*, every_tokens: int, total_tokens: int, tokens_per_step: int) -> tuple[Milestone, ...]:
    """The milestones of a run, in order; the last one is its end, labelled with ``total_tokens``.

    Args:
        every_tokens: distance of the labels, at least ``tokens_per_step``; 0 gives the end only.
        total_tokens: length of the run.
        tokens_per_step: tokens of one optimizer step.
    """
    assert every_tokens == 0 or every_tokens >= tokens_per_step, "milestones closer than steps (config.validate)"
    last_step = total_tokens // tokens_per_step
    labels = range(every_tokens, total_tokens, every_tokens) if every_tokens else range(0)
    found = [_milestone(label, label // tokens_per_step, tokens_per_step) for label in labels]
    # A label in the last, incomplete step would be the end under a second name.
    before = [milestone for milestone in found if milestone.step < last_step]
    return (*before, _milestone(total_tokens, last_step, tokens_per_step))


def milestone_at(step: int, among: tuple[Milestone, ...]) -> Milestone | None:
    """The milestone that a step is, if it is one."""
    return next((milestone for milestone in among if milestone.step == step), None)


def _milestone(label_tokens: int, step: int, tokens_per_step: int) -> Milestone:
    return Milestone(format_count(label_tokens), step, step * tokens_per_step)
