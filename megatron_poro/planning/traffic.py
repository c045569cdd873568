"""What processes send each other in a step, in bytes of one process by kind, and how long a link takes for it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron_poro.config.derived import batch_plan, num_stages
from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import Recompute, TrainConfig
from megatron_poro.parallel.schedules import Pass
from megatron_poro.planning.layers import LayerSize, held_parameters, is_tied_to_another, rank_layers

_FP32 = 4
_INT64 = 8


class Traffic(NamedTuple):
    """Bytes that one process sends in one step.

    Attributes:
        tensor: sums over the tensor group, and with ``parallel.sequence`` the two halves that sums are made of.
        pipeline: activations and their gradients to neighbours.
        data: gradients, of which each replica gets the sum of its share, and updated weights gathered from them.
        tie: a replica's share of the gradient of the tied matrix, between the two ends of the pipeline.
    """

    tensor: float
    pipeline: float
    data: float
    tie: float

    @property
    def total(self) -> float:
        """All kinds."""
        return sum(self)


def ring_bytes(size: float, members: int) -> float:
    """Bytes each member of a ring sends to sum a tensor of ``size`` bytes over all: reduce-scatter, then all-gather."""
    return 2.0 * (members - 1) / members * size


def tensor_sums(
    layers: Sequence[LayerSize], *, drops: bool, sequence: bool = False, defers: bool = False
) -> dict[Pass, float]:
    """Sums over the tensor group that a microbatch needs on a stage, in each of its passes.

    Every block sums its two outputs forward, and the gradients of its two inputs backward. Recomputation of whole
    blocks repeats the first forward one, and the second where dropout follows it: without, nothing after the last
    product is kept for the backward pass, and recomputation ends there. The embedding sums once forward, the head once
    backward.

    With ``sequence`` a sum is cut into its halves, a reduce-scatter and an all-gather of as many bytes, which lie at
    the two ends of a region. Every entrance (two a block, and the head) gathers its input once more in the backward
    pass, or where weight gradients are put off in their pass: that is half a sum each. Without dropout recomputation
    repeats an entrance's half of the second sum.

    Args:
        layers: of the stage, or some of them.
        drops: whether the residual stream has dropout.
        sequence: ``parallel.sequence``.
        defers: whether weight gradients are put off.
    """
    blocks = sum(layer.is_block for layer in layers)
    roles = {layer.role for layer in layers}
    embedding, head = "embedding" in roles, "head" in roles
    repeated = 2.0 if drops else 1.5 if sequence else 1.0
    again = repeated * sum(layer.recompute is Recompute.FULL for layer in layers)
    half = 0.5 if sequence else 1.0
    gathered = blocks + head / 2 if sequence else 0.0
    return {
        Pass.FORWARD: 2 * blocks + half * embedding + (head / 2 if sequence else 0.0),
        Pass.BACKWARD: (
            2 * blocks + half * head + again + (embedding / 2 if sequence else 0.0) + (0.0 if defers else gathered)
        ),
        Pass.WEIGHT_GRADIENTS: gathered if defers else 0.0,
    }


class StepTraffic(NamedTuple):
    """Bytes that one process sends once a step, for its gradients and the weights that become of them.

    Attributes:
        reduced: gradients, over the replicas.
        gathered: new weights, over the replicas.
        partial: gradients of parameters that each tensor rank uses for its positions only, over the tensor group.
        tie: the gradient of the tied matrix, between the two ends of the pipeline.
    """

    reduced: float
    gathered: float
    partial: float
    tie: float


def step_traffic(config: TrainConfig, layers: Sequence[LayerSize], *, replicas: int) -> StepTraffic:
    """What a process that holds these layers sends once a step.

    Exact sums are of whole gradients in 64-bit integers. Others are scattered in fp32, and only each replica's share is
    added up further.
    """
    tensor, exact = config.parallel.tensor, config.engine.reproducible
    item, shares = (_INT64, 1) if exact else (_FP32, replicas)
    parameters = held_parameters(layers, tensor)
    scattered = ring_bytes(item * parameters, replicas) / 2
    partial = item * sum(layer.whole for layer in layers) / shares if config.parallel.sequence else 0.0
    matrix = config.model.vocab_size * config.model.hidden_size / tensor
    return StepTraffic(
        reduced=2 * scattered if exact else scattered,
        gathered=ring_bytes(config.engine.precision.item_bytes * parameters, replicas) / 2,
        partial=ring_bytes(partial, tensor),
        tie=ring_bytes(item * matrix / shares, 2) if is_tied_to_another(layers) else 0.0,
    )


def rank_traffic(config: TrainConfig, *, world_size: int) -> list[Traffic]:
    """Bytes that one process of each pipeline rank sends in one step."""
    batch, parallel = batch_plan(config, world_size), config.parallel
    ranks, last = rank_layers(config), parallel.pipeline - 1
    item = config.engine.precision.item_bytes
    width, sent = activation_bytes(config), boundary_bytes(config)
    found = []
    for rank, layers in enumerate(ranks):
        sums = tensor_sums(layers, drops=config.model.hidden_dropout > 0.0, sequence=parallel.sequence).values()
        # cross entropy sums the maximum, the normaliser and the target of each token in fp32
        of_loss = 3 * _FP32 * width / (config.model.hidden_size * item) if layers[-1].role == "head" else 0.0
        neighbours = (rank > 0) + (rank < last)
        once = step_traffic(config, layers, replicas=batch.data_size)
        found.append(
            Traffic(
                tensor=batch.microbatches * ring_bytes(sum(sums) * width + of_loss, parallel.tensor) + once.partial,
                # activations to one neighbour, gradients to the other; a rank with two stages does both twice
                pipeline=batch.microbatches * sent * neighbours * _stages_per_rank(config),
                data=once.reduced + once.gathered,
                tie=once.tie,
            )
        )
    return found


def activation_bytes(config: TrainConfig) -> float:
    """Bytes of one microbatch between two layers, over all positions."""
    tokens = config.engine.microbatch_samples * config.data.sequence_length
    return float(tokens * config.model.hidden_size * config.engine.precision.item_bytes)


def boundary_bytes(config: TrainConfig) -> float:
    """Bytes of one microbatch that a process sends to the next stage: its positions where the sequence is cut."""
    return activation_bytes(config) / (config.parallel.tensor if config.parallel.sequence else 1)


def _stages_per_rank(config: TrainConfig) -> int:
    return num_stages(config) // config.parallel.pipeline


@dataclass(frozen=True)
class Links:
    """Bandwidths of the three kinds of groups, for processes numbered tensor first, then data, then pipeline.

    Attributes:
        tensor: bytes per second that one process of a tensor group sends.
        pipeline: between neighbours of a pipeline.
        data: that one process of a data group sends.
        latency: seconds of a message beside its bytes.
    """

    tensor: float
    pipeline: float
    data: float
    latency: float


def links(config: TrainConfig, hardware: HardwareConfig, *, world_size: int) -> Links:
    """Which link each kind of group uses.

    A ring over several nodes enters and leaves each of them once, and shares the node's network with the other rings
    there: with the members of a data group side by side, those are the tensor ranks. A pipeline on several nodes waits
    for its slowest boundary, which lies between two of them; for which processes depends on the grid, that there are
    some does not.
    """
    parallel, data_size = config.parallel, batch_plan(config, world_size).data_size
    node = hardware.devices_per_node
    inside = functools.partial(_inside, world_size=world_size, hardware=hardware)
    data_span = parallel.tensor * data_size
    if (data := inside(data_span)) is None:
        rings = parallel.tensor if parallel.tensor < node else node
        data = min(hardware.node_bandwidth, hardware.network_bandwidth * node / rings)
    return Links(
        tensor=inside(parallel.tensor) or hardware.network_bandwidth,
        pipeline=inside(world_size) or hardware.network_bandwidth,
        data=data,
        latency=hardware.latency_seconds,
    )


def _inside(members: int, *, world_size: int, hardware: HardwareConfig) -> float | None:
    """Bandwidth of groups of neighbours that all lie inside one module or node; ``None`` if one lies on two nodes."""
    for size, bandwidth in (
        (hardware.devices_per_module, hardware.module_bandwidth),
        (hardware.devices_per_node, hardware.node_bandwidth),
    ):
        if world_size <= size or size % members == 0:
            return bandwidth
    return None
