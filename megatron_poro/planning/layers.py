"""The layers of a model as numbers: parameters and multiply-adds of each, and what is recomputed of it.

The same list as :mod:`megatron_poro.models` builds, without building it; a test holds the two against each other.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_poro.config.derived import num_stages
from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import Recompute, StageSplit, TrainConfig
from megatron_poro.parallel.recomputed import recomputed_blocks
from megatron_poro.parallel.stages import stage_boundaries, stages_of_rank, weigh


@dataclass(frozen=True)
class LayerSize:
    """One layer.

    Attributes:
        role: its name in the plan of the model.
        cut: parameters that tensor ranks share out.
        whole: parameters that every tensor rank holds alike.
        products: multiply-adds per token of the forward pass, over all tensor ranks, without the attention matrix.
        attention: multiply-adds per token and per token of context of the two products with the attention matrix.
        counts: whether it counts when stages are balanced by number of layers.
        recompute: which of its activations are computed again in the backward pass.
    """

    role: str
    cut: int = 0
    whole: int = 0
    products: int = 0
    attention: int = 0
    counts: bool = False
    recompute: Recompute = Recompute.NONE

    @property
    def is_block(self) -> bool:
        """Whether it is a transformer block."""
        return self.role.startswith("blocks.")

    def parameters(self, tensor_size: int) -> int:
        """Parameters that one tensor rank holds."""
        return self.cut // tensor_size + self.whole

    def forward_flops(self, tokens: int, sequence_length: int) -> float:
        """Floating-point operations of a forward pass over so many tokens, over all tensor ranks."""
        return 2.0 * tokens * (self.products + self.attention * sequence_length)


def model_layers(model: BloomConfig) -> list[LayerSize]:
    """The layers of a BLOOM model, first to last; the tied head holds a copy of the embedding."""
    return list(_layers(model.num_layers, model.hidden_size, model.vocab_size))


@functools.cache  # a search asks for the same layers, and for the same cuts of them, again and again
def _layers(num_layers: int, h: int, v: int) -> tuple[LayerSize, ...]:
    block = LayerSize(
        "blocks",
        # qkv and its bias, out; up and its bias, down
        cut=3 * h * h + 3 * h + h * h + 4 * h * h + 4 * h + 4 * h * h,
        # two norms, and the biases of the two row-parallel layers
        whole=4 * h + 2 * h,
        products=12 * h * h,
        attention=2 * h,
        counts=True,
    )
    return (
        LayerSize("embedding", cut=v * h, counts=True),
        LayerSize("embedding_norm", whole=2 * h),
        *(replace(block, role=f"blocks.{number}") for number in range(num_layers)),
        LayerSize("final_norm", whole=2 * h),
        LayerSize("head", cut=v * h, products=v * h, counts=True),
    )


def stage_layers(config: TrainConfig) -> list[list[LayerSize]]:
    """The layers of each stage in the order of the model; DualPipeV has two stages for each pipeline rank."""
    model, engine = config.model, config.engine
    layers = _layers(model.num_layers, model.hidden_size, model.vocab_size)
    by_cost = config.parallel.stage_split is StageSplit.COST
    counts = None if engine.recompute_blocks is None else tuple(engine.recompute_blocks)
    return [list(stage) for stage in _stages(layers, num_stages(config), by_cost, engine.recompute, counts)]


@functools.lru_cache(maxsize=1024)
def _stages(
    layers: tuple[LayerSize, ...], number: int, by_cost: bool, again: Recompute, counts: tuple[int, ...] | None
) -> list[tuple[LayerSize, ...]]:
    """The layers cut into stages, each with what the run recomputes of it."""
    bounds = _boundaries(layers, number, by_cost)
    chosen = None if counts is None else recomputed_blocks([layer.is_block for layer in layers], bounds, counts)
    names = None if chosen is None else {f"blocks.{block}" for block in chosen}
    marked = tuple(
        replace(layer, recompute=again) if layer.is_block and (names is None or layer.role in names) else layer
        for layer in layers
    )
    return [marked[first:last] for first, last in itertools.pairwise(bounds)]


@functools.lru_cache(maxsize=256)
def _boundaries(layers: tuple[LayerSize, ...], number: int, by_cost: bool) -> tuple[int, ...]:
    weights = weigh([(float(layer.products), layer.counts) for layer in layers], by_cost=by_cost)
    return stage_boundaries(weights, number)


def rank_layers(config: TrainConfig) -> list[list[LayerSize]]:
    """The layers that each pipeline rank holds: its stage, and under DualPipeV the mirrored one as well."""
    stages, ranks = stage_layers(config), config.parallel.pipeline
    return [
        [layer for stage in stages_of_rank(rank, ranks=ranks, num_stages=len(stages)) for layer in stages[stage]]
        for rank in range(ranks)
    ]


def held_parameters(layers: Sequence[LayerSize], tensor_size: int) -> int:
    """Parameters that one tensor rank holds for its layers; embedding and head in one process share their matrix.

    Args:
        layers: those of a process.
        tensor_size: tensor ranks.
    """
    shares = any(layer.role == "embedding" for layer in layers)
    return sum(layer.parameters(tensor_size) for layer in layers if not (shares and layer.role == "head"))


def total_parameters(model: BloomConfig) -> int:
    """Parameters of the model, the tied matrix once."""
    return sum(layer.parameters(1) for layer in model_layers(model) if layer.role != "head")
