"""Layouts of a model on a number of devices, by predicted time, with the reason for each that is out.

Looked at is what :data:`SEARCHED` says. Where blocks are recomputed, no more of them are than it takes to fit the
device, on each pipeline rank.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_poro.config.derived import data_parallel_size
from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import AttentionBackend, PipelineSchedule, Recompute, StageSplit, TrainConfig
from megatron_poro.config.validate import validate
from megatron_poro.errors import PoroError
from megatron_poro.planning.forecast import Forecast, forecast
from megatron_poro.planning.memory import rank_memory
from megatron_poro.planning.recomputing import fewest_blocks, recompute_words
from megatron_poro.units import format_bytes

MICROBATCH_SAMPLES = (1, 2, 4, 8)
"""Powers of two, as global batches are multiples of them. A larger microbatch keeps as many times the activations and
leaves as many times fewer to fill the pipeline, while the products of 8 samples are long enough for any device."""

LONGEST_PIPELINE = 32
"""Ranks. A step waits for ranks - 1 of its microbatches, so that a longer one takes hundreds of microbatches a replica
to be worth it; and simulating it takes a time that grows with the square of the ranks."""

SEARCHED = (
    "rank layouts that use all devices: tensor groups inside a node, pipelines of up to "
    f"{LONGEST_PIPELINE} ranks, microbatches of {', '.join(map(str, MICROBATCH_SAMPLES[:-1]))} or "
    f"{MICROBATCH_SAMPLES[-1]} samples, both schedules, weight gradients that wait, ways to split and to recompute"
)


@dataclass(frozen=True)
class Candidate:
    """One layout.

    Attributes:
        config: the run with this layout.
        found: what to expect of it; ``None`` for a layout that is out.
        reason: why it is out; empty if it is not.
        is_own: whether it is that of the config, as it stands.
    """

    config: TrainConfig
    found: Forecast | None
    reason: str = ""
    is_own: bool = False

    @property
    def name(self) -> str:
        """The settings in which candidates differ, as one types them."""
        parallel, engine = self.config.parallel, self.config.engine
        waiting = engine.deferred_weight_gradients
        words = [
            f"parallel.tensor={parallel.tensor}",
            f"parallel.pipeline={parallel.pipeline}",
            f"parallel.data={parallel.data}",
            f"parallel.sequence={str(parallel.sequence).lower()}",
            f"engine.microbatch_samples={engine.microbatch_samples}",
            f"engine.pipeline_schedule={engine.pipeline_schedule.value}",
            f"engine.deferred_weight_gradients={'null' if waiting is None else waiting}",
            recompute_words(self.config),
            f"parallel.stage_split={parallel.stage_split.value}",
        ]
        return " ".join(words)


def search(
    config: TrainConfig, hardware: HardwareConfig, *, world_size: int, backend: AttentionBackend
) -> list[Candidate]:
    """Layouts of the run on so many devices: those that work first, the fastest at the top.

    Args:
        config: its values are valid. Its global batch stays what it is, and its own layout is among the candidates,
            whether it fits the devices or not.
        hardware: the machine.
        world_size: devices, all of which are used.
        backend: the attention kernel that will run.
    """
    # none where not even one replica fits; it is judged as it stands then
    data = data_parallel_size(config, world_size) or None
    own = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, data=data))
    judged = functools.partial(_fitted, hardware=hardware, world_size=world_size, backend=backend)
    candidates = [judged(one) for one in _layouts(config, hardware, world_size)]
    candidates = [one for one in candidates if (one.config.parallel, one.config.engine) != (own.parallel, own.engine)]
    as_it_stands = _judge(own, hardware, world_size=world_size, backend=backend)
    candidates.append(dataclasses.replace(as_it_stands, is_own=True))
    return sorted(candidates, key=lambda one: one.found.time.total if one.found else math.inf)


def _layouts(config: TrainConfig, hardware: HardwareConfig, world_size: int) -> Iterator[TrainConfig]:
    heads, layers = config.model.num_heads, config.model.num_layers
    batch = config.schedule.global_batch_samples
    for tensor in range(1, hardware.devices_per_node + 1):
        if any(size % tensor for size in (hardware.devices_per_node, heads, config.model.vocab_size)):
            continue
        for pipeline in range(1, min(layers + 2, LONGEST_PIPELINE) + 1):
            if world_size % (tensor * pipeline):
                continue
            data = world_size // (tensor * pipeline)
            for samples in MICROBATCH_SAMPLES:
                if batch % (data * samples):
                    continue
                yield from _variants(config, tensor, pipeline, data, samples)


def _variants(config: TrainConfig, tensor: int, pipeline: int, data: int, samples: int) -> Iterator[TrainConfig]:
    microbatches = config.schedule.global_batch_samples // (data * samples)
    cuts = (False, True) if config.data.sequence_length % tensor == 0 else (False,)
    if tensor == 1:
        cuts = (config.parallel.sequence,)  # there is nothing to cut it over
    for schedule, waiting in _schedules(pipeline, microbatches):
        for recompute in Recompute:
            for split in StageSplit if pipeline > 1 else (config.parallel.stage_split,):
                engine = dataclasses.replace(
                    config.engine,
                    microbatch_samples=samples,
                    pipeline_schedule=schedule,
                    deferred_weight_gradients=waiting,
                    recompute=recompute,
                    recompute_blocks=None,
                )
                for sequence in cuts:
                    parallel = dataclasses.replace(
                        config.parallel,
                        tensor=tensor,
                        pipeline=pipeline,
                        data=data,
                        sequence=sequence,
                        stage_split=split,
                    )
                    yield dataclasses.replace(config, parallel=parallel, engine=engine)


def _schedules(pipeline: int, microbatches: int) -> Iterator[tuple[PipelineSchedule, int | None]]:
    """Schedules that a pipeline has the microbatches for, and microbatches whose weight gradients wait: none, and as
    many as there is any use for.
    """
    yield PipelineSchedule.ONE_F_ONE_B, None
    if pipeline > 1:
        yield from ((PipelineSchedule.ONE_F_ONE_B, waiting) for waiting in (0, pipeline - 1))
        if microbatches >= 2 * pipeline:
            yield PipelineSchedule.DUALPIPEV, None


def _fitted(config: TrainConfig, hardware: HardwareConfig, *, world_size: int, backend: AttentionBackend) -> Candidate:
    """A layout that recomputes no more blocks than it has to."""
    found = _judge(config, hardware, world_size=world_size, backend=backend)
    if found.found is None:
        return found
    fewest = fewest_blocks(config, hardware, world_size=world_size, backend=backend)
    if fewest is None or not any(fewest.engine.recompute_blocks or ()):  # none at all is a candidate of its own
        return found
    return _judge(fewest, hardware, world_size=world_size, backend=backend)


def _judge(config: TrainConfig, hardware: HardwareConfig, *, world_size: int, backend: AttentionBackend) -> Candidate:
    try:
        validate(config, world_size=world_size)
        needed = max(part.total for part in rank_memory(config, world_size=world_size, backend=backend))
    except PoroError as error:
        return Candidate(config, None, str(error).splitlines()[0])
    room = hardware.room_for_tensors
    if needed > room:
        return Candidate(config, None, f"needs {format_bytes(int(needed))}, {format_bytes(room)} are there")
    return Candidate(config, forecast(config, hardware, world_size=world_size, backend=backend))
