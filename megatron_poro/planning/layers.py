"""The layers of a model as numbers: parameters and multiply-adds of each, and what is recomputed of it.

The same list as :mod:`megatron_poro.models` builds, without building it; a test holds the two against each other.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from megatron_poro.config.derived import num_stages
from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import Recompute, StageSplit, TrainConfig
from megatron_poro.parallel.recomputed import recomputed_blocks
from megatron_poro.parallel.stages import stage_boundaries, stages_of_rank, weigh


class ParameterSize(NamedTuple):
    """One parameter of a layer.

    Attributes:
        numbers: in the whole of it.
        is_cut: whether tensor ranks share it out; else every one holds it alike.
        is_matrix: whether it has more than one dimension, and so decays.
    """

    numbers: int
    is_cut: bool
    is_matrix: bool

    def held(self, tensor_size: int) -> int:
        """Numbers that one tensor rank holds."""
        return self.numbers // tensor_size if self.is_cut else self.numbers


@dataclass(frozen=True)
class LayerSize:
    """One layer.

    Attributes:
        role: its name in the plan of the model.
        sizes: its parameters, in the order of the layer.
        products: multiply-adds per token of the forward pass, over all tensor ranks, without the attention matrix.
        attention: multiply-adds per token and per token of context of the two products with the attention matrix.
        counts: whether it counts when stages are balanced by number of layers.
        recompute: which of its activations are computed again in the backward pass.
    """

    role: str
    sizes: tuple[ParameterSize, ...] = ()
    products: int = 0
    attention: int = 0
    counts: bool = False
    recompute: Recompute = Recompute.NONE

    @property
    def is_block(self) -> bool:
        """Whether it is a transformer block."""
        return self.role.startswith("blocks.")

    @property
    def is_tied(self) -> bool:
        """Whether its matrix is that of another layer too."""
        return self.role in ("embedding", "head")

    def parameters(self, tensor_size: int) -> int:
        """Parameters that one tensor rank holds."""
        return sum(size.held(tensor_size) for size in self.sizes)

    @property
    def whole(self) -> int:
        """Parameters that every tensor rank holds alike."""
        return sum(size.numbers for size in self.sizes if not size.is_cut)

    def forward_flops(self, tokens: int, sequence_length: int) -> float:
        """Floating-point operations of a forward pass over so many tokens, over all tensor ranks."""
        return 2.0 * tokens * (self.products + self.attention * sequence_length)


def model_layers(model: BloomConfig) -> list[LayerSize]:
    """The layers of a BLOOM model, first to last; the tied head holds a copy of the embedding."""
    return list(_layers(model.num_layers, model.hidden_size, model.vocab_size))


@functools.cache  # a search asks for the same layers, and for the same cuts of them, again and again
def _layers(num_layers: int, h: int, v: int) -> tuple[LayerSize, ...]:
    matrix, bias = functools.partial(ParameterSize, is_cut=True, is_matrix=True), ParameterSize(h, False, False)
    norm = (bias, bias)  # its weight is as large
    block = LayerSize(
        "blocks",
        sizes=(
            *norm,
            *(matrix(3 * h * h), ParameterSize(3 * h, True, False)),  # qkv
            *(matrix(h * h), bias),  # out
            *norm,
            *(matrix(4 * h * h), ParameterSize(4 * h, True, False)),  # up
            *(matrix(4 * h * h), bias),  # down
        ),
        products=12 * h * h,
        attention=2 * h,
        counts=True,
    )
    return (
        LayerSize("embedding", sizes=(matrix(v * h),), counts=True),
        LayerSize("embedding_norm", sizes=norm),
        *(replace(block, role=f"blocks.{number}") for number in range(num_layers)),
        LayerSize("final_norm", sizes=norm),
        LayerSize("head", sizes=(matrix(v * h),), products=v * h, counts=True),
    )


def stage_layers(config: TrainConfig) -> list[list[LayerSize]]:
    """The layers of each stage in the order of the model; DualPipeV has two stages for each pipeline rank."""
    model, engine = config.model, config.engine
    shape = (model.num_layers, model.hidden_size, model.vocab_size)
    by_cost = config.parallel.stage_split is StageSplit.COST
    counts = None if engine.recompute_blocks is None else tuple(engine.recompute_blocks)
    return [list(stage) for stage in _stages(shape, num_stages(config), by_cost, engine.recompute, counts)]


@functools.lru_cache(maxsize=1024)
def _stages(
    shape: tuple[int, int, int], number: int, by_cost: bool, again: Recompute, counts: tuple[int, ...] | None
) -> list[tuple[LayerSize, ...]]:
    """The layers cut into stages, each with what the run recomputes of it."""
    layers, bounds = _layers(*shape), _boundaries(shape, number, by_cost)
    chosen = None if counts is None else recomputed_blocks([layer.is_block for layer in layers], bounds, counts)
    names = None if chosen is None else {f"blocks.{block}" for block in chosen}
    marked = tuple(
        replace(layer, recompute=again) if layer.is_block and (names is None or layer.role in names) else layer
        for layer in layers
    )
    return [marked[first:last] for first, last in itertools.pairwise(bounds)]


@functools.lru_cache(maxsize=256)
def _boundaries(shape: tuple[int, int, int], number: int, by_cost: bool) -> tuple[int, ...]:
    weights = weigh([(float(layer.products), layer.counts) for layer in _layers(*shape)], by_cost=by_cost)
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
    return sum(layer.parameters(tensor_size) for layer in own_layers(layers))


def own_layers(layers: Sequence[LayerSize]) -> list[LayerSize]:
    """Those of a process's layers that have parameters of their own: not a head beside the embedding."""
    shares = any(layer.role == "embedding" for layer in layers)
    return [layer for layer in layers if not (shares and layer.role == "head")]


def is_tied_to_another(layers: Sequence[LayerSize]) -> bool:
    """Whether a process has one end of the tied matrix, and another process the other one."""
    return sum(layer.is_tied for layer in layers) == 1


def total_parameters(model: BloomConfig) -> int:
    """Parameters of the model, the tied matrix once."""
    return sum(layer.parameters(1) for layer in model_layers(model) if layer.role != "head")
