"""The whole run in advance: how many steps, what each of them does, and when it is over.

Nothing here is remembered: every answer is a function of the config and of :class:`Progress`, so that a resumed run
cannot differ from one that was never stopped.
"""

from dataclasses import dataclass

from megatron_poro.config.derived import batch_plan
from megatron_poro.config.run import TrainConfig
from megatron_poro.schedule.learning_rate import LearningRate
from megatron_poro.schedule.milestones import Milestone, milestones
from megatron_poro.schedule.progress import Progress


@dataclass(frozen=True)
class StepPlan:
    """What the next optimizer step does.

    Attributes:
        learning_rate: its rate.
        microbatches: forward passes of each replica.
        samples: samples of all replicas.
        tokens: tokens of all replicas.
    """

    learning_rate: float
    microbatches: int
    samples: int
    tokens: int


@dataclass(frozen=True)
class RunPlan:
    """A run, before it starts.

    Attributes:
        total_samples: samples that ``total_tokens`` makes, rounded down; the data is shuffled for this many.
        total_steps: whole steps in them, rounded down.
        samples_per_step: samples of one step over all replicas.
        sequence_length: tokens of one sample.
        microbatches: forward passes of each replica per step.
        learning_rate: rate as a function of consumed samples.
        milestones: steps to keep and export; the last is ``total_steps``.
    """

    total_samples: int
    total_steps: int
    samples_per_step: int
    sequence_length: int
    microbatches: int
    learning_rate: LearningRate
    milestones: tuple[Milestone, ...]

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step over all replicas."""
        return self.samples_per_step * self.sequence_length

    def next_step(self, progress: Progress) -> StepPlan:
        """What to do after the steps that are done."""
        return StepPlan(
            learning_rate=self.learning_rate.at(progress.samples),
            microbatches=self.microbatches,
            samples=self.samples_per_step,
            tokens=self.tokens_per_step,
        )

    def advance(self, progress: Progress) -> Progress:
        """The progress after one more step."""
        return progress.advance(samples=self.samples_per_step, tokens=self.tokens_per_step)

    def after(self, steps: int) -> Progress:
        """The progress after so many steps from the start."""
        return Progress(steps, steps * self.samples_per_step, steps * self.tokens_per_step)

    def is_finished(self, progress: Progress) -> bool:
        """Whether no whole step is left."""
        return progress.step >= self.total_steps


def plan_run(config: TrainConfig, *, world_size: int | None = None) -> RunPlan:
    """The plan of a validated config.

    Args:
        config: what ``config.validate`` accepts.
        world_size: number of processes; decides the microbatches of a replica where ``parallel.data`` is null.
    """
    batch, section = batch_plan(config, world_size), config.schedule
    total_samples = section.total_tokens // config.data.sequence_length
    return RunPlan(
        total_samples=total_samples,
        total_steps=total_samples // batch.samples_per_step,
        samples_per_step=batch.samples_per_step,
        sequence_length=config.data.sequence_length,
        microbatches=batch.microbatches,
        learning_rate=LearningRate.of(section, sequence_length=config.data.sequence_length),
        milestones=milestones(
            every_tokens=config.export.every_tokens,
            total_tokens=section.total_tokens,
            tokens_per_step=batch.tokens_per_step,
            label_unit=config.export.label_unit,
        ),
    )
