"""What processes send each other in a step, in bytes of one process by kind, and how long a link takes for it."""

from dataclasses import dataclass
from typing import NamedTuple

from megatron_poro.config.derived import batch_plan, num_stages
from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import Recompute, TrainConfig
from megatron_poro.planning.layers import LayerSize, held_parameters, rank_layers

_FP32 = 4


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


def tensor_sums(layers: list[LayerSize], *, drops: bool, sequence: bool = False) -> tuple[float, float]:
    """Sums over the tensor group that a microbatch needs on a stage: in the forward and in the backward pass.

    Every block sums its two outputs forward, and the gradients of its two inputs backward. Recomputation of whole
    blocks repeats the first forward one, and the second where dropout follows it: without, nothing after the last
    product is kept for the backward pass, and recomputation ends there. The embedding sums once forward, the head once
    backward.

    With ``sequence`` a sum is cut into its halves, a reduce-scatter and an all-gather of as many bytes, which lie at
    the two ends of a region. Every entrance (two a block, and the head) gathers its input once more in the backward
    pass: that is half a sum each. Without dropout recomputation repeats an entrance's half of the second sum.

    Args:
        layers: of the stage.
        drops: whether the residual stream has dropout.
        sequence: ``parallel.sequence``.
    """
    blocks = sum(layer.is_block for layer in layers)
    roles = {layer.role for layer in layers}
    embedding, head = "embedding" in roles, "head" in roles
    repeated = 2.0 if drops else 1.5 if sequence else 1.0
    again = repeated * sum(layer.recompute is Recompute.FULL for layer in layers)
    if sequence:
        return 2 * blocks + embedding / 2 + head / 2, 3 * blocks + embedding / 2 + head + again
    return 2 * blocks + embedding, 2 * blocks + head + again


def rank_traffic(config: TrainConfig, *, world_size: int) -> list[Traffic]:
    """Bytes that one process of each pipeline rank sends in one step."""
    batch, parallel = batch_plan(config, world_size), config.parallel
    ranks, last = rank_layers(config), parallel.pipeline - 1
    item = config.engine.precision.item_bytes
    width, sent = activation_bytes(config), boundary_bytes(config)
    # exact sums are of whole gradients in 64-bit integers; others are scattered, and only shares are added up further
    exact, replicas = config.engine.reproducible, batch.data_size
    summed, shares = (8.0, 1) if exact else (4.0, replicas)
    found = []
    for rank, layers in enumerate(ranks):
        sums = sum(
            tensor_sums(
                layers,
                drops=config.model.hidden_dropout > 0.0,
                sequence=parallel.sequence,
            )
        )
        # of parameters that each tensor rank uses for its positions only, once a step
        partial = summed * sum(layer.whole for layer in layers) / shares if parallel.sequence else 0.0
        # cross entropy sums the maximum, the normaliser and the target of each token in fp32
        of_loss = 3 * _FP32 * width / (config.model.hidden_size * item) if layers[-1].role == "head" else 0.0
        parameters = held_parameters(layers, parallel.tensor)
        neighbours = (rank > 0) + (rank < last)
        folded = sum(layer.role in ("embedding", "head") for layer in layers) == 2
        matrix = config.model.vocab_size * config.model.hidden_size / parallel.tensor
        over_replicas = ring_bytes(summed * parameters, replicas) / (1 if exact else 2)
        gathered = ring_bytes(item * parameters, replicas) / 2
        tied = any(layer.role in ("embedding", "head") for layer in layers) and not folded
        found.append(
            Traffic(
                tensor=batch.microbatches * ring_bytes(sums * width + of_loss, parallel.tensor)
                + ring_bytes(partial, parallel.tensor),
                # activations to one neighbour, gradients to the other; a rank with two stages does both twice
                pipeline=batch.microbatches * sent * neighbours * _stages_per_rank(config),
                data=over_replicas + gathered,
                tie=ring_bytes(summed * matrix / shares, 2) if tied else 0.0,
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
    there: with the members of a data group side by side, those are the tensor ranks.
    """
    parallel, data_size = config.parallel, batch_plan(config, world_size).data_size
    node = hardware.devices_per_node
    network_of_node = hardware.network_bandwidth * node
    tensor = _within(parallel.tensor, hardware)
    data_span = parallel.tensor * data_size
    if data_span <= node:
        data = _within(data_span, hardware)
    else:
        rings = parallel.tensor if parallel.tensor < node else node
        data = min(hardware.node_bandwidth, network_of_node / rings)
    crosses = world_size > node and parallel.pipeline > 1 and data_span * 2 > node
    return Links(
        tensor=tensor,
        pipeline=hardware.network_bandwidth if crosses else hardware.node_bandwidth,
        data=data,
        latency=hardware.latency_seconds,
    )


def _within(members: int, hardware: HardwareConfig) -> float:
    """Bandwidth of a group of neighbours."""
    if members <= hardware.devices_per_module:
        return hardware.module_bandwidth
    return hardware.node_bandwidth if members <= hardware.devices_per_node else hardware.network_bandwidth
