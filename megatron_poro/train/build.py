"""From a config to a run that is ready to step: the one place that knows how the rooms fit together.

:func:`build_run` is meant to be read from top to bottom. What can be wrong with the input is looked at in the order of
its cost: files before the engine, the engine before the checkpoint.
"""

from pathlib import Path

from megatron_poro.checkpoint.background import BackgroundSaver
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.data import SourceConfig
from megatron_poro.config.derived import BatchPlan, batch_plan, recomputed_layers
from megatron_poro.config.fields import plain
from megatron_poro.config.profile import profiled_steps
from megatron_poro.config.run import TrainConfig
from megatron_poro.data.loading import BatchLoader
from megatron_poro.data.mixture import Mixture, build_mixture
from megatron_poro.data.sampler import Sampler
from megatron_poro.engine.build import build_engine, prove_gradients
from megatron_poro.engine.objective import ObjectiveFactory
from megatron_poro.errors import CheckpointError, ConfigError
from megatron_poro.logs import get_logger
from megatron_poro.metrics.memory import peak_memory_probe
from megatron_poro.metrics.sinks import JsonLinesSink, Sink, console_sink
from megatron_poro.metrics.throughput import SpeedOfRun, step_flops
from megatron_poro.metrics.tracker import Tracker
from megatron_poro.metrics.wandb_sink import WandbMode, WandbRun, WandbSink
from megatron_poro.models.kernel_choice import attention_kernel
from megatron_poro.parallel.agreement import World
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.topology import Topology
from megatron_poro.schedule.plan import RunPlan, plan_run
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.train.control import Control, Notice, StoppedEarlyError, StopRequest
from megatron_poro.train.folder import RunFolder
from megatron_poro.train.lineage import Lineage, RunRecord, record_of
from megatron_poro.train.processes import Processes
from megatron_poro.train.profiling import Profile
from megatron_poro.train.restoring import restore
from megatron_poro.train.run import Run, Validation
from megatron_poro.train.step_guard import StepGuard
from megatron_poro.train.stragglers import Stragglers

logger = get_logger(__name__)


def build_run(
    config: TrainConfig,
    *,
    processes: Processes,
    objective: ObjectiveFactory,
    stop: StopRequest,
    wandb_mode: WandbMode = "offline",
) -> Run:
    """Builds a run and, if it has a checkpoint, puts it back to where it was. All processes call it.

    Args:
        config: what ``config.validate`` accepts for this number of processes.
        processes: the processes of the run, joined.
        objective: makes the objective.
        stop: notes requests to stop.
        wandb_mode: ``online``, ``offline`` or ``disabled``; only looked at with ``metrics.wandb``.

    Raises:
        PoroError: on every process alike, for whatever is wrong with the input.
        StoppedEarlyError: on every process alike, if any was asked to stop meanwhile.
    """
    folder = RunFolder.of(config.run, job=processes.launch.job)
    try:
        return _build(config, folder, processes=processes, objective=objective, stop=stop, wandb_mode=wandb_mode)
    except BaseException:
        folder.release()
        raise


def _build(
    config: TrainConfig,
    folder: RunFolder,
    *,
    processes: Processes,
    objective: ObjectiveFactory,
    stop: StopRequest,
    wandb_mode: WandbMode,
) -> Run:
    """:func:`build_run` in a folder that it may claim."""
    # the grid, and every step in advance
    size = processes.launch.size
    batch, plan = batch_plan(config, size), plan_run(config, world_size=size)
    topology = Topology(tensor=config.parallel.tensor, pipeline=config.parallel.pipeline, data=batch.data_size)
    world = processes.world
    groups = ParallelGroups.create(topology, world=world)

    # what is on disk: the run's own folder, the tokenizer, the corpora
    store = CheckpointStore(
        folder.checkpoints, keep_last=config.checkpoint.keep_last, before_commit=folder.require_held
    )
    control = Control(stop, folder.control if world.is_first else None, world.union)
    control.report(folder.notice)
    saver = BackgroundSaver(store, world)
    control.report(lambda: Notice.WRITING if saver.is_busy else Notice(0))
    lineage = _claim(folder, store, world)
    with world.together():
        tokenizer = _open_tokenizer(config)
    training = _open_mixture(config, config.data.train, plan.total_samples, tokenizer, world)
    sampler = _sampler(batch, batch.samples_per_step)
    validation = _open_validation(config, batch, tokenizer, world, data_rank=groups.data.rank)

    _leave_if_stopping(control)

    # the model, proven to learn what one process would
    num_sources = max(len(config.data.train), len(config.data.validation))
    engine = build_engine(config, groups=groups, objective=objective, num_sources=num_sources, device=processes.device)
    logger.info(f"attention kernel: {attention_kernel(config, processes.device.type).value} on {processes.device.type}")
    logger.info(prove_gradients(config, engine, groups=groups, objective=objective, device=processes.device))

    _leave_if_stopping(control)

    run = Run(
        config=config,
        processes=processes,
        folder=folder,
        plan=plan,
        tokenizer=tokenizer,
        engine=engine,
        batches=BatchLoader(training, sampler, data_rank=groups.data.rank),
        first_batches=BatchLoader(training, sampler, data_rank=groups.data.rank, prefetch=False),
        validation=validation,
        store=store,
        saver=saver,
        tracker=Tracker([], sources=training.names, speed=_speed(config, plan, size)),
        control=control,
        lineage=lineage,
        guard=StepGuard(config.guards),
        stragglers=Stragglers(topology, limit=config.guards.straggler_ratio),
        profile=Profile(
            profiled_steps(config.profile.steps), folder=folder, groups=engine.groups, device=processes.device
        ),
    )
    _resume(run)
    if engine.needs_data:
        run.batches.read_ahead(run.progress.samples)
    run.profile.begins_after(run.progress.step)

    # only now is anything of the run's own written: it is known to be the same run
    with world.together():
        if world.is_first:
            folder.write_config(config)
            folder.control.prepare()
            lineage.write()
            run.tracker = _tracker(run, training, wandb_mode)
    return run


def _claim(folder: RunFolder, store: CheckpointStore, world: World) -> Lineage:
    """Holds the run's folder and reads its history; a rewind that was cut short is finished."""
    record: RunRecord | None = None
    with world.together():
        if world.is_first:
            folder.claim()
            record = record_of(folder.path, store)
    found = world.gather(record)[0]
    assert found is not None, "the first process has a record or has raised"
    return Lineage(folder.path, found, writes=world.is_first, before_rewind=folder.require_held)


def _leave_if_stopping(control: Control) -> None:
    """Loading may take longer than a scheduler waits. Nothing has been trained, so nothing is saved."""
    if Notice.STOP_SIGNAL in control.agree():
        raise StoppedEarlyError


def _open_tokenizer(config: TrainConfig) -> Tokenizer:
    """The tokenizer, which must fit into the embedding."""
    tokenizer = Tokenizer.load(config.tokenizer.path)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size={config.model.vocab_size} is less than the {tokenizer.vocab_size} ids of the tokenizer "
            f"in tokenizer.path={config.tokenizer.path}. Raise model.vocab_size, or use the model's own tokenizer."
        )
    return tokenizer


def _open_mixture(
    config: TrainConfig, sources: list[SourceConfig], num_samples: int, tokenizer: Tokenizer, world: World
) -> Mixture:
    """A mixture on every process; the first one builds the indices, the others find them on disk."""

    def build() -> Mixture:
        return build_mixture(
            sources,
            num_samples=num_samples,
            sequence_length=config.data.sequence_length,
            seed=config.data.shuffle_seed,
            index_cache=Path(config.data.index_cache),
            vocab_size=config.model.vocab_size,
            expected_tokenizer=tokenizer.fingerprint,
            max_epochs=config.data.max_epochs if sources is config.data.train else None,
        )

    mixtures: list[Mixture] = []
    for turn in (world.is_first, not world.is_first):
        with world.together():
            if turn:
                mixtures.append(build())
    return mixtures[0]


def _open_validation(
    config: TrainConfig, batch: BatchPlan, tokenizer: Tokenizer, world: World, *, data_rank: int
) -> Validation | None:
    """The validation samples, rounded up to whole microbatches of all replicas."""
    if not config.data.validation or not config.validation.every_steps:
        return None
    round_samples = batch.microbatch_samples * batch.data_size
    microbatches = -(-config.validation.samples // round_samples)
    samples = microbatches * round_samples
    mixture = _open_mixture(config, config.data.validation, samples, tokenizer, world)
    loader = BatchLoader(mixture, _sampler(batch, samples), data_rank=data_rank, prefetch=False)
    return Validation(loader, microbatches)


def _sampler(batch: BatchPlan, samples: int) -> Sampler:
    return Sampler(global_batch_samples=samples, microbatch_samples=batch.microbatch_samples, data_size=batch.data_size)


def _resume(run: Run) -> None:
    """Puts the run back to its newest valid checkpoint, if it has one."""
    if not run.config.resume.enabled:
        with run.processes.world.together():
            _require_no_checkpoints(run)
        return
    restore(run)


def _require_no_checkpoints(run: Run) -> None:
    steps = run.store.steps()
    if steps:
        raise CheckpointError(
            f"resume.enabled=false, but {run.store.folder} holds checkpoints up to step {steps[0]}, which a new run "
            "would mix with its own. Set resume.enabled=true, or choose another run.name."
        )


def _tracker(run: Run, training: Mixture, wandb_mode: WandbMode) -> Tracker:
    """The tracker of the first process, with all sinks; the metrics file is put back to the run's step."""
    config = run.config
    sinks: list[Sink] = [console_sink(run.plan.total_steps), JsonLinesSink(run.folder.metrics, run.progress.step)]
    if config.metrics.wandb:
        told = WandbRun(
            project=config.metrics.wandb_project,
            name=config.run.name,
            run_id=run.lineage.run_id,
            lineage=run.lineage.number,
            folder=run.folder.path,
            mode=wandb_mode,
            config=plain(config),
        )
        sinks.append(WandbSink(told))
    return Tracker(
        sinks,
        sources=training.names,
        consumption=lambda samples: consumption(training, samples, config.data.sequence_length),
        validation_sources=[source.name for source in config.data.validation],
        speed=_speed(config, run.plan, run.processes.launch.size),
        peak_memory=peak_memory_probe(run.processes.device),
    )


def consumption(mixture: Mixture, samples: int, sequence_length: int) -> list[tuple[int, float]]:
    """Tokens and epochs read of each source after the first ``samples`` samples of a run."""
    counts, epochs = mixture.consumed(samples).tolist(), mixture.epochs(samples).tolist()
    return [(count * sequence_length, read) for count, read in zip(counts, epochs, strict=True)]


def _speed(config: TrainConfig, plan: RunPlan, devices: int) -> SpeedOfRun:
    model = config.model
    flops = step_flops(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        sequence_length=plan.sequence_length,
        samples=plan.samples_per_step,
        recompute=config.engine.recompute,
        recomputed_layers=recomputed_layers(config),
    )
    return SpeedOfRun(
        flops, tokens_per_step=plan.tokens_per_step, devices=devices, peak_tflops=config.metrics.peak_tflops
    )
