"""What the values of a config must be together, once each is right by itself.

A rule is a small function that yields one sentence per problem, with the keys, their values and what would work. It is
given the number of processes where that is known.
"""

import math
from collections.abc import Callable, Iterator

from megatron_poro.config.derived import batch_plan, data_parallel_size, decay_tokens, num_stages, replica_processes
from megatron_poro.config.profile import profiled_steps
from megatron_poro.config.run import EngineKind, PipelineSchedule, Recompute, TrainConfig
from megatron_poro.config.typed import enumerate_words
from megatron_poro.units import format_count

FitRule = Callable[[TrainConfig, int | None], Iterator[str]]


def heads_divide_hidden_size(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """Every head gets the same share of the hidden state."""
    hidden, heads = config.model.hidden_size, config.model.num_heads
    if hidden % heads:
        yield (
            f"model.num_heads={heads} does not divide model.hidden_size={hidden}. Use "
            f"{enumerate_words(_around(hidden, heads))} heads, or a hidden size that is a multiple of {heads}."
        )


def tensor_divides_model(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """Attention is cut on head borders, the vocabulary in equal parts."""
    tensor = config.parallel.tensor
    sizes = {"model.num_heads": config.model.num_heads, "model.vocab_size": config.model.vocab_size}
    fitting = _divisors(math.gcd(*sizes.values()))
    for key, size in sizes.items():
        if size % tensor:
            yield (
                f"parallel.tensor={tensor} does not divide {key}={size}. Use {enumerate_words(fitting)} "
                "(heads and vocabulary must both be divisible), or change the model."
            )


def tensor_divides_sequence(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """With ``parallel.sequence`` each tensor rank has equally many positions."""
    tensor, length = config.parallel.tensor, config.data.sequence_length
    if config.parallel.sequence and length % tensor:
        yield (
            f"parallel.sequence=true cuts data.sequence_length={length} over parallel.tensor={tensor}, which does not "
            f"divide it. Use a length of {_multiples(length, tensor)}, or parallel.sequence=false."
        )


def layers_fill_stages(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """A stage holds a block, the embedding or the head at least."""
    layers, stages = config.model.num_layers + 2, num_stages(config)
    if stages > layers:
        pipeline, schedule = config.parallel.pipeline, config.engine.pipeline_schedule.value
        yield (
            f"parallel.pipeline={pipeline} with engine.pipeline_schedule={schedule} needs {stages} stages, but "
            f"model.num_layers={layers - 2} with embedding and head makes {layers} layers. Use "
            f"parallel.pipeline={layers * pipeline // stages} or less, or a deeper model."
        )


def grid_is_the_world(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """Every process has a place, and every place a process."""
    if world_size is None:
        return
    replica, data = replica_processes(config), config.parallel.data
    sizes = f"parallel.tensor={config.parallel.tensor} x parallel.pipeline={config.parallel.pipeline}"
    if data is not None and replica * data != world_size:
        instead = f", or set parallel.data={world_size // replica}" if world_size % replica == 0 else ""
        yield (
            f"{sizes} x parallel.data={data} is {replica * data} processes, but this run has {world_size}. "
            f"Start {replica * data} processes{instead}."
        )
    if data is None and world_size % replica:
        yield (
            f"{sizes} is {replica} processes per model, which does not divide the {world_size} processes of this run. "
            f"Start a multiple of {replica} processes, or choose sizes whose product divides {world_size}."
        )


def microbatches_fill_the_batch(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """Every replica gets the same number of whole microbatches."""
    data = data_parallel_size(config, world_size)
    batch, microbatch = config.schedule.global_batch_samples, config.engine.microbatch_samples
    if data and batch % (microbatch * data):
        unit = microbatch * data
        yield (
            f"schedule.global_batch_samples={batch} is not a multiple of engine.microbatch_samples={microbatch} times "
            f"{data} replicas (parallel.data). Use {_multiples(batch, unit)}, or other microbatches or replicas."
        )


def local_engine_is_one_process(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """It has no communication at all."""
    processes = max(world_size or 1, replica_processes(config) * data_parallel_size(config, world_size))
    if config.engine.kind is EngineKind.LOCAL and processes > 1:
        yield (
            f"engine.kind=local is one process, not {processes} (parallel.tensor={config.parallel.tensor}, "
            f"parallel.pipeline={config.parallel.pipeline}, parallel.data={data_parallel_size(config, world_size)}). "
            "Use engine=deepspeed, or start one process with parallel=single."
        )


def compiled_code_is_not_reproducible(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """A compiler may add up in another order for another shape, and on another machine."""
    if config.engine.compile and config.engine.reproducible:
        yield (
            "engine.compile=true gives bits that depend on the compiler, and engine.reproducible=true promises the "
            "same ones everywhere. Set one of them to false."
        )


def recomputed_blocks_are_there(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """One number for each pipeline rank. How many blocks a rank has is known where layers are cut into stages
    (:mod:`megatron_poro.cli.checking`).
    """
    engine, ranks, blocks = config.engine, config.parallel.pipeline, config.model.num_layers
    counts = engine.recompute_blocks
    if counts is None:
        return
    if engine.recompute is Recompute.NONE:
        yield (
            f"engine.recompute_blocks={counts} has no meaning with engine.recompute=none. Set engine.recompute to "
            "selective or full, or engine.recompute_blocks to null."
        )
    if len(counts) != ranks:
        yield (
            f"engine.recompute_blocks={counts} has {len(counts)} numbers, but parallel.pipeline={ranks}. Give one "
            "number for each pipeline rank, or null for all blocks."
        )
    for rank, count in enumerate(counts):
        if count < 0:
            yield (
                f"engine.recompute_blocks[{rank}]={count} is below 0. Use 0 to recompute no block of pipeline rank "
                f"{rank}, or at most as many as it has."
            )
    asked = sum(count for count in counts if count > 0)
    if asked > blocks:
        yield (
            f"engine.recompute_blocks={counts} asks for {asked} blocks, of model.num_layers={blocks}. Use numbers that "
            "are each at most the blocks of their pipeline rank."
        )


def dualpipev_fits(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """Two streams of microbatches meet in the pipeline: it needs two stages and enough microbatches to fill both."""
    if config.engine.pipeline_schedule is not PipelineSchedule.DUALPIPEV:
        return
    pipeline, data = config.parallel.pipeline, max(1, data_parallel_size(config, world_size))
    if pipeline < 2:
        yield f"engine.pipeline_schedule=dualpipev needs parallel.pipeline of 2 or more, not {pipeline}. Use 1f1b."
        return
    unit = config.engine.microbatch_samples * data
    microbatches = config.schedule.global_batch_samples // unit
    if microbatches < 2 * pipeline:
        yield (
            f"engine.pipeline_schedule=dualpipev with parallel.pipeline={pipeline} needs {2 * pipeline} microbatches "
            f"per step, but schedule.global_batch_samples={config.schedule.global_batch_samples} makes {microbatches}. "
            f"Use {2 * pipeline * unit} samples or more, smaller microbatches, or 1f1b."
        )


def deferral_has_a_pipeline(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """Weight gradients wait for what a pipeline under 1F1B leaves idle."""
    most, ranks = config.engine.deferred_weight_gradients, config.parallel.pipeline
    if most is None:
        return
    if config.engine.pipeline_schedule is not PipelineSchedule.ONE_F_ONE_B:
        schedule = config.engine.pipeline_schedule.value
        yield (
            f"engine.deferred_weight_gradients={most} is for engine.pipeline_schedule=1f1b, not {schedule}. Use 1f1b, "
            "or set engine.deferred_weight_gradients=null."
        )
    if ranks < 2:
        yield (
            f"engine.deferred_weight_gradients={most} needs parallel.pipeline of 2 or more, not {ranks}: one stage "
            "waits for no other. Set engine.deferred_weight_gradients=null."
        )
    elif most >= ranks:
        yield (
            f"engine.deferred_weight_gradients={most} is more than any of parallel.pipeline={ranks} ranks has use for. "
            f"Use {ranks - 1}, or less to save memory."
        )


def schedule_is_in_order(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """One step at least; the warm-up ends within the run and within the decay. The decay may outlast the run."""
    section, tokens_per_step = config.schedule, batch_plan(config).tokens_per_step
    if section.total_tokens < tokens_per_step:
        yield (
            f"schedule.total_tokens={format_count(section.total_tokens)} is less than one step of {tokens_per_step} "
            "tokens (schedule.global_batch_samples * data.sequence_length). Train longer, or on smaller batches."
        )
    for key, end in {"total_tokens": section.total_tokens, "decay_tokens": decay_tokens(config)}.items():
        if section.warmup_tokens > end:
            yield (
                f"schedule.warmup_tokens={format_count(section.warmup_tokens)} passes "
                f"schedule.{key}={format_count(end)}. The warm-up lies inside both, since all are counted from the "
                "start of the run; shorten it."
            )
    if section.min_learning_rate > section.learning_rate:
        yield (
            f"schedule.min_learning_rate={section.min_learning_rate} is above "
            f"schedule.learning_rate={section.learning_rate}. Swap them, or lower the first."
        )


def mixtures_are_complete(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """There is something to train on, and one name means one source."""
    if not config.data.train:
        yield "data.train is empty; choose a mixture with data=... or list its sources."
    for key, sources in (("data.train", config.data.train), ("data.validation", config.data.validation)):
        names = [source.name for source in sources]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{key} has {names.count(name)} sources called {name}; metrics go by this name, so change one."


def validation_has_samples(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """A validation that is switched on reads something."""
    section = config.validation
    if section.every_steps and config.data.validation and not section.samples:
        yield (
            f"validation.every_steps={section.every_steps} with validation.samples=0 validates nothing. Set "
            "validation.samples, or validation.every_steps=0 to switch it off."
        )


def milestones_are_steps_apart(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """Two milestones on one step would be the same model under two labels."""
    every, tokens_per_step = config.export.every_tokens, batch_plan(config).tokens_per_step
    if 0 < every < tokens_per_step:
        yield (
            f"export.every_tokens={format_count(every)} is less than one step of {tokens_per_step} tokens. Use "
            f"{tokens_per_step} or more, or 0 for the end of the run only."
        )


def profiled_steps_are_taken(config: TrainConfig, world_size: int | None) -> Iterator[str]:
    """A profile is written after its last step, which this start of the run must reach."""
    steps = profiled_steps(config.profile.steps)
    ends = {"schedule.total_tokens": config.schedule.total_tokens // batch_plan(config).tokens_per_step}
    if config.run.stop_after_steps is not None:
        ends["run.stop_after_steps"] = config.run.stop_after_steps
    key, end = min(ends.items(), key=lambda item: item[1])
    if steps and steps[-1] > end:
        yield (
            f"profile.steps={config.profile.steps} goes on to step {steps[-1]}, but the run ends after step {end} "
            f"({key}). Name earlier steps, or train longer."
        )


FIT_RULES: tuple[FitRule, ...] = (
    heads_divide_hidden_size,
    tensor_divides_model,
    tensor_divides_sequence,
    layers_fill_stages,
    grid_is_the_world,
    microbatches_fill_the_batch,
    local_engine_is_one_process,
    compiled_code_is_not_reproducible,
    recomputed_blocks_are_there,
    dualpipev_fits,
    deferral_has_a_pipeline,
    schedule_is_in_order,
    mixtures_are_complete,
    validation_has_samples,
    milestones_are_steps_apart,
    profiled_steps_are_taken,
)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _around(number: int, wanted: int) -> list[int]:
    """The divisors of a number next to a wanted one, below and above."""
    divisors = _divisors(number)
    return [max(d for d in divisors if d <= wanted), *[d for d in divisors if d > wanted][:1]]


def _multiples(number: int, unit: int) -> str:
    """The multiples of a unit on both sides of a number."""
    below = number // unit * unit
    return enumerate_words([multiple for multiple in (below, below + unit) if multiple])
