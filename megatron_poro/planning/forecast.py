"""A run on a machine, in advance: memory, seconds of a step and where they go, days of the run.

What is exact is said where it is computed (:mod:`~megatron_poro.planning.layers`, ``traffic``, the order of work in
``pipeline``). What is modelled is the time of a piece of work: floating-point operations over ``hardware.efficiency``
of the peak, bytes over the bandwidth of their link, memory traffic of gradients over the memory's bandwidth.
"""

from dataclasses import dataclass

from megatron_poro.config.derived import batch_plan, num_stages, recomputed_layers
from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import AttentionBackend, TrainConfig
from megatron_poro.metrics.throughput import SpeedOfRun, Throughput, step_flops
from megatron_poro.parallel.schedules import Pass
from megatron_poro.parallel.stages import stages_of_rank
from megatron_poro.planning.layers import held_parameters, rank_layers
from megatron_poro.planning.memory import MemoryParts, rank_memory
from megatron_poro.planning.passes import PassTimes, transfer_seconds
from megatron_poro.planning.pipeline import step_length
from megatron_poro.planning.reduction import unsent_seconds
from megatron_poro.planning.traffic import Links, Traffic, links, rank_traffic, step_traffic
from megatron_poro.schedule.plan import plan_run

_NORM_BYTES = 12
"""Of memory, for a gradient of a replica's share: read for the norm, read and written by clipping."""

_FUSED_BYTES = 28
"""Of memory, for a number of a replica's share: gradient, master and moments read; master and moments written."""

_FOREACH_BYTES = 80
"""The same where each operation of the update is a pass of its own, as in a reproducible run: master scaled (8), first
moment (12), second moment scaled (8) and added to (12), its root (8), divided (8), added to (8), master moved (16)."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step on the slowest rank; they add up to ``total``.

    Attributes:
        compute: passes through layers, recomputation included, of the rank that computes longest.
        tensor: sums over the tensor group inside them.
        bubble: waiting for other pipeline ranks, transfers included.
        data: what is left to send of gradients to replicas after the last backward pass, and of the tied matrix.
        optimizer: the update, and gathering the new weights.
    """

    compute: float
    tensor: float
    bubble: float
    data: float
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return self.compute + self.tensor + self.bubble + self.data + self.optimizer


@dataclass(frozen=True)
class Forecast:
    """What to expect of a run.

    Attributes:
        world_size: processes.
        memory: of one process of each pipeline rank.
        traffic: of one process of each pipeline rank, per step.
        time: of a step.
        speed: throughput.
        steps: of the run.
        fits: whether every process fits into its device.
    """

    world_size: int
    memory: tuple[MemoryParts, ...]
    traffic: tuple[Traffic, ...]
    time: StepTime
    speed: Throughput
    steps: int
    fits: bool

    @property
    def days(self) -> float:
        """Days of computing, without stops."""
        return self.steps * self.time.total / 86_400

    @property
    def device_hours(self) -> float:
        """Devices times hours."""
        return self.steps * self.time.total / 3600 * self.world_size


def forecast(
    config: TrainConfig,
    hardware: HardwareConfig,
    *,
    world_size: int,
    backend: AttentionBackend = AttentionBackend.FLASH,
) -> Forecast:
    """Plans a run on a machine.

    Args:
        config: what ``config.validate`` accepts for this number of processes.
        hardware: the machine.
        world_size: processes, one per device.
        backend: the attention kernel that will run.
    """
    batch, parallel = batch_plan(config, world_size), config.parallel
    link = links(config, hardware, world_size=world_size)
    passes = PassTimes(config, hardware, link)
    length = step_length(
        config.engine.pipeline_schedule,
        ranks=parallel.pipeline,
        microbatches=batch.microbatches,
        seconds=passes,
        transfer_seconds=transfer_seconds(config, link),
        deferred=config.engine.deferred_weight_gradients,
    )
    computing = [_busy(config, rank, batch.microbatches, passes) for rank in range(parallel.pipeline)]
    compute, tensor = max(computing)
    memory = tuple(rank_memory(config, world_size=world_size, backend=backend))
    traffic = tuple(rank_traffic(config, world_size=world_size))
    time = StepTime(
        compute=compute,
        tensor=tensor,
        bubble=length.seconds - compute - tensor,
        data=unsent_seconds(config, hardware, link, passes, world_size=world_size, behind=length.behind),
        optimizer=_optimizer_seconds(config, hardware, link, batch.data_size),
    )
    plan = plan_run(config, world_size=world_size)
    model = config.model
    flops = step_flops(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        sequence_length=config.data.sequence_length,
        samples=batch.samples_per_step,
        recompute=config.engine.recompute,
        recomputed_layers=recomputed_layers(config),
    )
    speed = SpeedOfRun(
        flops,
        tokens_per_step=batch.tokens_per_step,
        devices=world_size,
        peak_tflops=hardware.peak_tflops_in(config.engine.precision),
    )
    return Forecast(
        world_size=world_size,
        memory=memory,
        traffic=traffic,
        time=time,
        speed=speed.of(time.total),
        steps=plan.total_steps,
        fits=max(part.total for part in memory) <= hardware.room_for_tensors,
    )


def _busy(config: TrainConfig, rank: int, microbatches: int, passes: PassTimes) -> tuple[float, float]:
    """Seconds that a rank computes and sums over its tensor group in one step."""
    stages = stages_of_rank(rank, ranks=config.parallel.pipeline, num_stages=num_stages(config))
    compute = sum(passes.compute(kind, stage) for kind in Pass for stage in stages)
    tensor = sum(passes.tensor(kind, stage) for kind in Pass for stage in stages)
    return microbatches * compute, microbatches * tensor


def _optimizer_seconds(config: TrainConfig, hardware: HardwareConfig, link: Links, replicas: int) -> float:
    """The update of a replica's share of the weights, and gathering the new ones."""
    update = _FOREACH_BYTES if config.engine.reproducible else _FUSED_BYTES
    ranks = rank_layers(config)
    parameters = max(held_parameters(layers, config.parallel.tensor) for layers in ranks)
    gathered = max(step_traffic(config, layers, replicas=replicas).gathered for layers in ranks)
    return (_NORM_BYTES + update) * parameters / replicas / hardware.memory_bandwidth + gathered / link.data
