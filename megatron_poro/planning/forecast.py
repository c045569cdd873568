"""A run on a machine, in advance: memory, seconds of a step and where they go, days and what failures cost.

What is exact is said where it is computed (:mod:`~megatron_poro.planning.layers`, ``traffic``, the order of work in
``pipeline``). What is modelled is the time of a piece of work: floating-point operations over ``hardware.efficiency``
of the peak, bytes over the bandwidth of their link, memory traffic of gradients over the memory's bandwidth.
"""

from dataclasses import dataclass

from megatron_poro.config.derived import batch_plan, num_stages, recomputed_layers
from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import AttentionBackend, Recompute, TrainConfig
from megatron_poro.metrics.throughput import SpeedOfRun, Throughput, step_flops
from megatron_poro.parallel.bucket_sizes import bucket_numbers
from megatron_poro.parallel.stages import stages_of_rank
from megatron_poro.planning.layers import LayerSize, held_parameters, rank_layers, stage_layers
from megatron_poro.planning.memory import MemoryParts, rank_memory
from megatron_poro.planning.pipeline import Pass, step_seconds
from megatron_poro.planning.traffic import (
    Links,
    Traffic,
    activation_bytes,
    boundary_bytes,
    links,
    rank_traffic,
    ring_bytes,
    tensor_sums,
)
from megatron_poro.schedule.plan import plan_run


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


class PassTimes:
    """Seconds of a pass through a stage.

    Args:
        config: a valid config.
        hardware: the machine.
        link: of the tensor group.
        accumulate_bytes: of memory that are read and written to add one number to its sum. 10 where a gradient is read
            in the weights' format, and its sum read and written in fp32.
    """

    def __init__(
        self, config: TrainConfig, hardware: HardwareConfig, link: Links, *, accumulate_bytes: float = 10.0
    ) -> None:
        self._config, self._link, self._accumulate_bytes = config, link, accumulate_bytes
        self._stages = stage_layers(config)
        self._flops_per_second = hardware.peak_tflops * 1e12 * hardware.efficiency
        self._memory_bandwidth = hardware.memory_bandwidth

        places = [(kind, stage) for kind in Pass for stage in range(len(self._stages))]
        self._compute = {place: self._compute_seconds(*place) for place in places}
        self._tensor = {place: self._tensor_seconds(*place) for place in places}

    def compute(self, kind: Pass, stage: int) -> float:
        """Without communication."""
        return self._compute[kind, stage]

    def tensor(self, kind: Pass, stage: int) -> float:
        """Sums over the tensor group."""
        return self._tensor[kind, stage]

    def __call__(self, kind: Pass, stage: int) -> float:
        return self._compute[kind, stage] + self._tensor[kind, stage]

    def _compute_seconds(self, kind: Pass, stage: int) -> float:
        config, layers = self._config, self._stages[stage]
        tokens = config.engine.microbatch_samples * config.data.sequence_length
        length, size = config.data.sequence_length, config.parallel.tensor
        forward = sum(layer.forward_flops(tokens, length) for layer in layers)
        if kind is Pass.FORWARD:
            return forward / size / self._flops_per_second
        again = sum(_recomputed_flops(layer, tokens, length) for layer in layers)
        added = self._accumulate_bytes * sum(layer.parameters(size) for layer in layers) / self._memory_bandwidth
        return (2 * forward + again) / size / self._flops_per_second + added

    def _tensor_seconds(self, kind: Pass, stage: int) -> float:
        size = self._config.parallel.tensor
        if size == 1:
            return 0.0
        forward, backward = tensor_sums(
            self._stages[stage],
            drops=self._config.model.hidden_dropout > 0.0,
            sequence=self._config.parallel.sequence,
        )
        each = ring_bytes(activation_bytes(self._config), size) / self._link.tensor + self._link.latency
        return (forward if kind is Pass.FORWARD else backward) * each


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
    pipeline_seconds, _ = step_seconds(
        config.engine.pipeline_schedule,
        ranks=parallel.pipeline,
        microbatches=batch.microbatches,
        seconds=passes,
        transfer_seconds=transfer_seconds(config, link),
    )
    computing = [_busy(config, rank, batch.microbatches, passes) for rank in range(parallel.pipeline)]
    compute, tensor = max(computing)
    memory = tuple(rank_memory(config, world_size=world_size, backend=backend))
    traffic = tuple(rank_traffic(config, world_size=world_size))
    time = StepTime(
        compute=compute,
        tensor=tensor,
        bubble=pipeline_seconds - compute - tensor,
        **_after_the_pipeline(config, hardware, link, batch.data_size, passes),
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
        flops, tokens_per_step=batch.tokens_per_step, devices=world_size, peak_tflops=hardware.peak_tflops
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


def transfer_seconds(config: TrainConfig, link: Links) -> float:
    """Time that a microbatch takes from one stage to the next."""
    return boundary_bytes(config) / link.pipeline + link.latency


def _busy(config: TrainConfig, rank: int, microbatches: int, passes: PassTimes) -> tuple[float, float]:
    """Seconds that a rank computes and sums over its tensor group in one step."""
    stages = stages_of_rank(rank, ranks=config.parallel.pipeline, num_stages=num_stages(config))
    compute = sum(passes.compute(kind, stage) for kind in Pass for stage in stages)
    tensor = sum(passes.tensor(kind, stage) for kind in Pass for stage in stages)
    return microbatches * compute, microbatches * tensor


def _after_the_pipeline(
    config: TrainConfig, hardware: HardwareConfig, link: Links, data_size: int, passes: PassTimes
) -> dict[str, float]:
    """What follows the last backward pass. Buckets of gradients are sent while it runs, all but the last of them."""
    size = config.parallel.tensor
    parameters = max(held_parameters(layers, size) for layers in rank_layers(config))
    reduce = ring_bytes(4.0 * parameters, data_size) / 2 / link.data
    last = min(1.0, bucket_numbers(data_size) / parameters)
    left = max(last * reduce, reduce - passes(Pass.BACKWARD, 0))
    tie = 0.0
    if config.parallel.pipeline > 1 and len(stage_layers(config)) == config.parallel.pipeline:
        tie = 4.0 * config.model.vocab_size * config.model.hidden_size / size / data_size / link.pipeline
    gather = (data_size - 1) / data_size * 2.0 * parameters / link.data
    # of the replica's share: norm and clipping read and write gradients, the update masters and moments
    touched = (12.0 + 28.0) * parameters / data_size
    return {"data": left + tie, "optimizer": touched / hardware.memory_bandwidth + gather}


def _recomputed_flops(layer: LayerSize, tokens: int, length: int) -> float:
    if layer.recompute is Recompute.FULL:
        return layer.forward_flops(tokens, length)
    return 2.0 * tokens * layer.attention * length if layer.recompute is Recompute.SELECTIVE else 0.0
