"""The least recomputation with which a run fits its devices, pipeline rank by pipeline rank."""

import dataclasses
from collections.abc import Sequence

from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import AttentionBackend, PipelineSchedule, Recompute, TrainConfig
from megatron_poro.planning.forecast import forecast
from megatron_poro.planning.layers import rank_layers
from megatron_poro.planning.memory import rank_memory


def with_recompute(config: TrainConfig, recompute: Recompute, counts: Sequence[int] | None = None) -> TrainConfig:
    """The run with another ``engine.recompute`` and ``engine.recompute_blocks``."""
    blocks = None if counts is None else list(counts)
    return dataclasses.replace(
        config, engine=dataclasses.replace(config.engine, recompute=recompute, recompute_blocks=blocks)
    )


def with_waiting(config: TrainConfig, most: int | None) -> TrainConfig:
    """The run with another ``engine.deferred_weight_gradients``: at most what schedule and pipeline have use for."""
    ranks = config.parallel.pipeline
    if config.engine.pipeline_schedule is not PipelineSchedule.ONE_F_ONE_B or ranks < 2:
        most = None
    waiting = None if most is None else min(most, ranks - 1)
    return dataclasses.replace(config, engine=dataclasses.replace(config.engine, deferred_weight_gradients=waiting))


def recompute_words(config: TrainConfig) -> str:
    """What a run recomputes, as one types it."""
    counts = config.engine.recompute_blocks
    blocks = "null" if counts is None else str(counts).replace(" ", "")
    return f"engine.recompute={config.engine.recompute.value} engine.recompute_blocks={blocks}"


def fewest_blocks(
    config: TrainConfig, hardware: HardwareConfig, *, world_size: int, backend: AttentionBackend
) -> TrainConfig | None:
    """The run with the smallest ``engine.recompute_blocks`` with which every rank fits its device.

    Which number a rank takes depends on no other rank, so each is halved in on by itself.

    Args:
        config: a valid config; ``engine.recompute`` says how blocks are recomputed.
        hardware: the machine.
        world_size: processes.
        backend: the attention kernel that will run.

    Returns:
        ``recompute_blocks=None`` if every block has to be recomputed; ``None`` if that does not fit either.
    """
    room, recompute = hardware.room_for_tensors, config.engine.recompute

    def fits(counts: Sequence[int] | None) -> list[bool]:
        memory = rank_memory(with_recompute(config, recompute, counts), world_size=world_size, backend=backend)
        return [part.total <= room for part in memory]

    if not all(fits(None)):
        return None
    if recompute is Recompute.NONE:
        return with_recompute(config, recompute)
    all_blocks = [sum(layer.is_block for layer in layers) for layers in rank_layers(with_recompute(config, recompute))]
    most, fewest = list(all_blocks), [-1] * len(all_blocks)  # the first fits, the second does not or is not possible
    while any(high - low > 1 for low, high in zip(fewest, most, strict=True)):
        middle = [(low + high) // 2 if high - low > 1 else high for low, high in zip(fewest, most, strict=True)]
        for rank, is_enough in enumerate(fits(middle)):
            if is_enough:
                most[rank] = middle[rank]
            elif middle[rank] < most[rank]:
                fewest[rank] = middle[rank]
    return with_recompute(config, recompute, None if most == all_blocks else most)


def least_recomputation(
    config: TrainConfig, hardware: HardwareConfig, *, world_size: int, backend: AttentionBackend
) -> TrainConfig | None:
    """The fastest choice of ``engine.recompute`` and ``engine.recompute_blocks`` for the layout of a config that fits.

    Args:
        config: a valid config.
        hardware: the machine.
        world_size: processes.
        backend: the attention kernel that will run.

    Returns:
        ``None`` if nothing fits.
    """
    best, seconds = None, float("inf")
    for recompute in Recompute:
        found = fewest_blocks(with_recompute(config, recompute), hardware, world_size=world_size, backend=backend)
        if found is None:
            continue
        took = forecast(found, hardware, world_size=world_size, backend=backend).time.total
        if took < seconds:
            best, seconds = found, took
    return best
