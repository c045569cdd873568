"""Numbers that follow from a config. They live in frozen values and never go back into it."""

from dataclasses import dataclass
from pathlib import Path

from megatron_poro.config.run import PipelineSchedule, Recompute, TrainConfig


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step is made of microbatches.

    Attributes:
        data_size: replicas of the model.
        microbatches: forward passes of one replica per step ("accumulation steps").
        microbatch_samples: samples in one of them.
        samples_per_step: samples of all replicas in one step.
        tokens_per_step: tokens of all replicas in one step.
    """

    data_size: int
    microbatches: int
    microbatch_samples: int
    samples_per_step: int
    tokens_per_step: int


def replica_processes(config: TrainConfig) -> int:
    """Processes that hold one model: tensor times pipeline size."""
    return config.parallel.tensor * config.parallel.pipeline


def data_parallel_size(config: TrainConfig, world_size: int | None = None) -> int:
    """Replicas of the model: what the config says, else what ``world_size`` processes leave, else 1."""
    if config.parallel.data is not None:
        return config.parallel.data
    return 1 if world_size is None else world_size // replica_processes(config)


def batch_plan(config: TrainConfig, world_size: int | None = None) -> BatchPlan:
    """The step of a config that ``validate`` accepts for this number of processes."""
    data_size = data_parallel_size(config, world_size)
    samples = config.schedule.global_batch_samples
    return BatchPlan(
        data_size=data_size,
        microbatches=samples // (config.engine.microbatch_samples * data_size),
        microbatch_samples=config.engine.microbatch_samples,
        samples_per_step=samples,
        tokens_per_step=samples * config.data.sequence_length,
    )


def run_folder(config: TrainConfig) -> Path:
    """Where everything that a run writes goes."""
    return Path(config.run.root) / config.run.name


def decay_tokens(config: TrainConfig) -> int:
    """Tokens at which the learning rate has reached its minimum."""
    given = config.schedule.decay_tokens
    return config.schedule.total_tokens if given is None else given


def recomputed_layers(config: TrainConfig) -> int:
    """Blocks that are computed a second time, wholly or in part."""
    if config.engine.recompute is Recompute.NONE:
        return 0
    counts = config.engine.recompute_blocks
    return config.model.num_layers if counts is None else sum(counts)


def num_stages(config: TrainConfig) -> int:
    """Parts that the list of layers of a run is cut into."""
    return stages_of_pipeline(config.engine.pipeline_schedule, config.parallel.pipeline)


def stages_of_pipeline(schedule: PipelineSchedule, ranks: int) -> int:
    """Parts that a list of layers is cut into for so many pipeline ranks; DualPipeV gives each of them two."""
    return ranks * (2 if schedule is PipelineSchedule.DUALPIPEV else 1)


def deferred_passes(most: int | None, rank: int) -> int | None:
    """Microbatches whose weight gradients wait on a pipeline rank while further backward passes come; ``None`` where
    weight gradients are part of backward passes.

    Rank ``r`` has its last backward pass ``r`` of them before the first rank, and is idle then: it has use for no more.

    Args:
        most: ``engine.deferred_weight_gradients``.
        rank: pipeline rank.
    """
    return None if most is None else min(most, rank)
