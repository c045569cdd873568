"""Sums of gradients over the replicas: what leaves while passes go on, and what is left to wait for behind them.

Gradients lie in the buckets of :mod:`megatron_poro.engine.buckets`, dealt out here from sizes alone (a test compares
them with what a simulated rank sends). A bucket leaves once the last backward pass of the step, or the last pass of
weight gradients where those are put off, has gone through all of its layers and the bucket before has left. Exact sums
of a reproducible run leave all at once, when all passes have ended.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from megatron_poro.config.derived import batch_plan
from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import TrainConfig
from megatron_poro.parallel.bucket_sizes import bucket_numbers
from megatron_poro.parallel.stages import stages_of_rank
from megatron_poro.planning.layers import (
    LayerSize,
    held_parameters,
    is_tied_to_another,
    own_layers,
    rank_layers,
    stage_layers,
)
from megatron_poro.planning.passes import PassTimes
from megatron_poro.planning.traffic import Links, step_traffic

_WRITE_BYTES = 44
"""Of memory, to turn the exact sum of a number into fp32: integers read, fp64 written, scaled in place, read, fp32
written (:meth:`megatron_poro.engine.fixed_point.FixedPointSums.write`)."""


class BucketSize(NamedTuple):
    """Gradients that are sent at a time.

    Attributes:
        numbers: in it, without padding.
        first: position of its first layer among those of the process, the last one that a backward pass goes through.
    """

    numbers: int
    first: int


def bucket_sizes(layers: Sequence[LayerSize], *, tensor: int, sequence: bool, limit: int) -> list[BucketSize]:
    """The buckets of a process, in the order in which they are sent.

    Args:
        layers: of the process, in the order of the model.
        tensor: tensor ranks.
        sequence: ``parallel.sequence``.
        limit: a bucket is closed by the parameter that brings it to so many numbers.
    """
    is_tied, own = is_tied_to_another(layers), own_layers(layers)
    parameters: list[tuple[BucketSize, Hashable]] = [
        # alike are those that decay, and those of which another process has a term of the gradient: the other end of a
        # tie, the other tensor ranks of a whole parameter where each saw its positions only
        (
            BucketSize(size.held(tensor), position),
            (size.is_matrix, sequence and tensor > 1 and not size.is_cut, is_tied and layer.is_tied),
        )
        for position, layer in enumerate(layers)
        if layer in own
        for size in layer.sizes
    ]
    open_ones: dict[Hashable, tuple[int, BucketSize]] = {}
    found: list[tuple[int, BucketSize]] = []
    for index, (size, kind) in reversed(list(enumerate(parameters))):
        _, bucket = open_ones.pop(kind, (index, BucketSize(0, size.first)))
        grown = BucketSize(bucket.numbers + size.numbers, size.first)
        if grown.numbers >= limit:
            found.append((index, grown))
        else:
            open_ones[kind] = (index, grown)
    # the one whose first parameter is the last to have its gradient leaves last
    return [bucket for _, bucket in sorted([*found, *open_ones.values()], reverse=True)]


def unsent_seconds(
    config: TrainConfig,
    hardware: HardwareConfig,
    link: Links,
    passes: PassTimes,
    *,
    world_size: int,
    behind: Sequence[float],
) -> float:
    """Seconds from the end of the last pass of a step until every process has the sums of its gradients.

    Args:
        config: a valid config.
        hardware: the machine.
        link: its links.
        passes: how long passes are.
        world_size: processes.
        behind: for each stage, seconds from the end of the last pass that gives its weights a gradient to the end of
            the last pass of all.
    """
    replicas, ranks = batch_plan(config, world_size).data_size, config.parallel.pipeline
    once = [step_traffic(config, layers, replicas=replicas) for layers in rank_layers(config)]
    summed = 0.0
    for rank, layers in enumerate(rank_layers(config)):
        stages = stages_of_rank(rank, ranks=ranks, num_stages=len(behind))
        parameters = held_parameters(layers, config.parallel.tensor)
        if config.engine.reproducible:
            writing = _WRITE_BYTES * parameters / hardware.memory_bandwidth
            ready = -min(behind[stage] for stage in stages)
            summed = max(summed, ready + once[rank].reduced / link.data + writing)
            continue
        ends = _layer_ends(config, stages, passes, behind)
        sent = -float("inf")
        for bucket in bucket_sizes(
            layers,
            tensor=config.parallel.tensor,
            sequence=config.parallel.sequence,
            limit=bucket_numbers(replicas),
        ):
            sent = max(sent, ends[bucket.first]) + once[rank].reduced * bucket.numbers / parameters / link.data
        summed = max(summed, sent)
    # what other processes of a replica have a term of is completed behind that
    partial, tie = max(part.partial for part in once), max(part.tie for part in once)
    return summed + partial / link.tensor + tie / link.pipeline


def _layer_ends(config: TrainConfig, stages: Sequence[int], passes: PassTimes, behind: Sequence[float]) -> list[float]:
    """When the last pass of a step that gives each layer of a process its gradients has; 0 is the end of all passes."""
    layers = stage_layers(config)
    return [
        -behind[stage] - passes.gradients_of_first(stage, position)
        for stage in stages
        for position in range(len(layers[stage]))
    ]
