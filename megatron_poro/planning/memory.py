"""How many bytes one process of each pipeline rank needs, part by part.

Sizes are per tensor rank, in bytes. What blocks keep is counted in :mod:`~megatron_poro.planning.tensor_sizes`, what is
there at the worst moment of a step in :mod:`~megatron_poro.planning.moments`.
"""

from typing import NamedTuple

from megatron_poro.config.derived import batch_plan
from megatron_poro.config.run import AttentionBackend, Precision, TrainConfig
from megatron_poro.models.kernel_choice import attention_kernel
from megatron_poro.parallel.schedules import work_order
from megatron_poro.planning.layers import LayerSize, held_parameters, rank_layers, stage_layers
from megatron_poro.planning.moments import worst_moment
from megatron_poro.planning.pipeline import FILLED, Held, most_held
from megatron_poro.planning.stage_sizes import StageSizes
from megatron_poro.planning.tensor_sizes import TensorSizes

_FP32 = 4
_INT64 = 8


class MemoryParts(NamedTuple):
    """Bytes of one process.

    Attributes:
        weights: the numbers that layers compute with.
        gradients: their sums in fp32, and in 64-bit integers beside it in a reproducible run.
        optimizer: this process's part of masters and two moments, fp32; of fp32 weights only the moments.
        activations: what forward passes have left for backward passes, at the worst moment.
        deferred: what backward passes have left for weight gradients that wait, at that moment.
        recomputed: what is made and dropped again at that moment: by a block, recomputed or on the way, and in a
            reproducible run by adding its gradients up.
        head: where the loss is, logits, those of which the gradient waits included, what the loss makes of them, and
            the same of the head's own gradient.
        buffers: what a stage received; under DualPipeV also gradients that passes use, and the graph of the last loss;
            ALiBi's bias and the causal mask, for kernels that need them as tensors.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    deferred: float
    recomputed: float
    head: float
    buffers: float

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self)


def attention_on_a_gpu(config: TrainConfig) -> AttentionBackend:
    """The kernel that a plan counts with: the one that will run, but ``flash`` for ``flex``, which keeps the same.

    Raises:
        ConfigError: for one that cannot run.
    """
    kernel = attention_kernel(config, "cuda")
    return AttentionBackend.FLASH if kernel is AttentionBackend.FLEX else kernel


def rank_memory(config: TrainConfig, *, world_size: int, backend: AttentionBackend) -> list[MemoryParts]:
    """Bytes that one process of each pipeline rank needs.

    Args:
        config: a valid config.
        world_size: number of processes.
        backend: the attention kernel that will run, not ``auto``.
    """
    batch, parallel, model = batch_plan(config, world_size), config.parallel, config.model
    item = config.engine.precision.item_bytes
    tokens = config.engine.microbatch_samples * config.data.sequence_length
    sizes = TensorSizes(
        tokens=tokens,
        hidden=model.hidden_size,
        heads=model.num_heads,
        tensor=parallel.tensor,
        length=config.data.sequence_length,
        item=item,
        drops=model.hidden_dropout > 0.0,
        drops_weights=model.attention_dropout > 0.0,
        sequence=parallel.sequence,
    )
    stages = stage_layers(config)
    found = []
    for rank, layers in enumerate(rank_layers(config)):
        # what is held no longer grows once the pipeline is full
        few = min(batch.microbatches, FILLED * parallel.pipeline)
        order = work_order(
            config.engine.pipeline_schedule,
            ranks=parallel.pipeline,
            rank=rank,
            microbatches=few,
            deferred=config.engine.deferred_weight_gradients,
        )
        left_behind = {
            stage: _kept(stages[stage], backend, sizes) + _in_pipeline(stage, len(stages), parallel.pipeline, sizes)
            for stage in {work.stage for work in order}
        }
        defers = config.engine.deferred_weight_gradients is not None
        waiting = {stage: _waiting(stages[stage], sizes) if defers else 0.0 for stage in left_behind}
        parameters = held_parameters(layers, parallel.tensor)
        passing = [
            StageSizes(
                layers=stages[stage],
                sizes=sizes,
                held=held,
                of_one=Held(left_behind[stage], waiting[stage]),
                defers=defers,
                microbatches=batch.microbatches,
                is_first=rank == 0,
                ranks_behind=parallel.pipeline - 1 - rank,
                in_order=len(stages) == parallel.pipeline,
                exact=config.engine.reproducible,
                share=parameters / batch.data_size,
            )
            for stage, held in most_held(order, left_behind, waiting).items()
        ]
        moment = max((worst_moment(config, one, backend=backend) for one in passing), key=sum)
        constants = sizes.constants(backend, model.alibi) if any(layer.is_block for layer in layers) else 0.0
        accumulated = _FP32 + (_INT64 if config.engine.reproducible else 0)
        found.append(
            MemoryParts(
                weights=float(parameters * item),
                gradients=float(parameters * accumulated),
                optimizer=_optimizer(config, parameters, batch.data_size),
                activations=moment.activations,
                deferred=moment.deferred,
                recomputed=moment.working,
                head=moment.head,
                buffers=moment.buffers + constants,
            )
        )
    return found


def _optimizer(config: TrainConfig, parameters: int, data_size: int) -> float:
    """Masters and moments are cut over the replicas; in fp32 the weights are the masters."""
    values = 2.0 if config.engine.precision is Precision.FP32 else 3.0
    return values * _FP32 * parameters / data_size


def _in_pipeline(stage: int, num_stages: int, ranks: int, sizes: TensorSizes) -> float:
    """Bytes that DeepSpeed's buffers hold of a microbatch in flight: what a stage was sent, and what it sends on.

    A stage computes with a copy of what it was sent. Where DualPipeV turns round, both are the same.
    """
    return sizes.width * ((stage > 0 and stage != ranks) + (stage < num_stages - 1))


def _waiting(layers: list[LayerSize], sizes: TensorSizes) -> float:
    """Bytes that one microbatch leaves to weight gradients that wait, logits not included."""
    blocks = sum(layer.is_block for layer in layers) * sizes.waiting_block
    return blocks + (sizes.width if layers[-1].role == "head" else 0.0)


def _kept(layers: list[LayerSize], backend: AttentionBackend, sizes: TensorSizes) -> float:
    """Bytes that one microbatch leaves behind on a stage, logits not included."""
    blocks = sum(sizes.kept_block(backend, layer.recompute) for layer in layers if layer.is_block)
    width = sizes.width
    of_ends = {
        "embedding": 2 * _INT64 * sizes.tokens,  # token ids, and the same counted from the first of this rank
        "embedding_norm": width,  # its input
        "final_norm": 2 * width,  # its input, and its output, which is the head's
    }
    ends = sum(of_ends.get(layer.role, 0.0) for layer in layers)
    masks = sizes.outside * sizes.hidden if sizes.drops and layers[0].role == "embedding" else 0
    if layers[-1].role == "final_norm":  # its output is what is sent
        ends -= width
    if layers[0].role == "head":  # its input is the final norm's output wherever that is, and not received twice
        ends += width
    return blocks + ends + masks
