"""The moments of a step at which a process may hold most, beside what it holds all the time.

Passes through blocks are one: what is kept of all microbatches in flight, and what a block makes and drops on the way.
The loss is another, so is the gradient of the embedding. Which is the worst depends on the sizes. Gradients are added
to their sums as they are made and reduced where they lie, so that only those of one layer are ever beside them. Where
tensors live and die was read off simulated ranks
(:mod:`megatron_poro.simulation.live_bytes`); a test holds the two against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from megatron_poro.config.run import AttentionBackend, PipelineSchedule, Recompute, TrainConfig
from megatron_poro.planning.layers import LayerSize

if TYPE_CHECKING:
    from megatron_poro.planning.memory import TensorSizes

_FP32 = 4
LOSS_CHUNK = 1 << 24
"""Logits of which a GPU computes the loss at a time, in fp32."""


class Moment(NamedTuple):
    """Bytes of a process at one moment, beside weights, sums of gradients, optimizer and constants.

    Attributes:
        activations: what forward passes have left for backward passes.
        working: what is made and dropped again on the way.
        head: logits and what the loss makes of them.
        buffers: what was received.
    """

    activations: float
    working: float
    head: float
    buffers: float


@dataclass(frozen=True)
class RankSizes:
    """What the moments of a rank are made of, in bytes.

    Attributes:
        layers: of the rank.
        sizes: of the tensors of a microbatch.
        kept: most that forward passes have left behind, over all microbatches in flight.
        of_one: of it, what one microbatch leaves behind.
        microbatches: of a step.
    """

    layers: Sequence[LayerSize]
    sizes: "TensorSizes"
    kept: float
    of_one: float
    microbatches: int

    @property
    def width(self) -> float:
        """One microbatch between two layers."""
        return self.sizes.width

    @property
    def blocks(self) -> list[Recompute]:
        """What is recomputed of each block of the rank."""
        return [layer.recompute for layer in self.layers if layer.is_block]

    def has(self, role: str) -> bool:
        """Whether the rank has a layer."""
        return any(layer.role == role for layer in self.layers)


def worst_moment(config: TrainConfig, rank: RankSizes, *, backend: AttentionBackend) -> Moment:
    """The moment at which a process of a rank holds most.

    Args:
        config: a valid config.
        rank: its sizes.
        backend: the attention kernel that will run, not ``auto``.
    """
    received = rank.width if config.parallel.pipeline > 1 else 0.0
    # the stage of the loss has two buffers for outputs, and drops logits with their graph when one is used again
    buffers = min(2, rank.microbatches) if config.engine.pipeline_schedule is PipelineSchedule.ONE_F_ONE_B else 1
    logits = _logits(config, rank)
    # which holds what the stage received, and its gradient
    graph = 2 * rank.width if rank.has("head") and not rank.has("embedding") else 0.0
    matrix = config.model.vocab_size / config.parallel.tensor * config.model.hidden_size * rank.sizes.item
    rest = Moment(rank.kept, (buffers - 1) * graph, buffers * logits, received)
    moments = [rest, *(_at_block(config, rank, rest, number, backend) for number in _telling_blocks(rank.blocks))]
    if rank.has("head"):
        moments.append(_in_the_loss(rank, rest, logits, graph, matrix))
    if rank.has("embedding"):
        made = rest.working + (2 if config.parallel.tensor > 1 else 1) * rank.width + matrix
        moments.append(rest._replace(activations=rest.activations - rank.of_one, working=made))
    return max(moments, key=sum)


def _telling_blocks(blocks: Sequence[Recompute]) -> list[int]:
    """The last block of a stage, the first, and the last of those that recompute what the ones behind do not."""
    last = len(blocks) - 1
    return [n for n in range(len(blocks)) if n in (0, last) or blocks[n] is not blocks[n + 1]]


def _at_block(config: TrainConfig, rank: RankSizes, rest: Moment, number: int, backend: AttentionBackend) -> Moment:
    """A block of a stage: those behind it have gone back."""
    blocks = rank.blocks
    gone = sum(rank.sizes.kept_block(backend, recompute) for recompute in blocks[number + 1 :])
    rest = rest._replace(activations=rest.activations - gone)
    return _in_a_block(config, rank, rest, blocks[number], backend)


def _in_a_block(
    config: TrainConfig, rank: RankSizes, rest: Moment, recompute: Recompute, backend: AttentionBackend
) -> Moment:
    """A block: its attention forward, or its feed-forward layer backward."""
    sizes, width = rank.sizes, rank.width
    attention_width = sizes.tokens * sizes.hidden / sizes.tensor * sizes.item
    whole = sizes.block(backend, selective=False) - width  # its input is kept in any case
    core = _attention_core(config, sizes, backend)
    # of the attention: the norm's output and statistics, queries, keys and values in one, and the core
    attention = width + 2 * sizes.tokens * sizes.item + 3 * attention_width + core
    # gradients of GELU's output and of the weight that it is multiplied with, beside all that the block has kept
    feed_forward = 4 * attention_width + 4 * sizes.hidden**2 / sizes.tensor * sizes.item
    # in a forward pass the stage's output is not there yet; at its end the attended and the expanded residual are
    output = 2 * width if rank.has("head") else width
    end = (1 + (3 if sizes.drops else 2 if sizes.tensor > 1 else 1)) * width
    # softmax backward has two gradients of the weights of every pair, and what followed it is gone
    back = _softmax_backward(sizes, backend) - 8 * attention_width - width
    # the loss of the microbatch before has not let go of its graph where a forward pass is under way
    earlier = 3 * width if rank.has("head") and rank.microbatches > 2 else 0.0
    core_again = max(core, _core_backward(sizes, backend))
    # the gradient behind a mask; where nothing follows the last product, recomputation ends before it
    masked = width if sizes.drops else 0.0
    working = {
        Recompute.FULL: max(attention, whole + feed_forward, whole + end if sizes.drops else 0.0) + masked,
        Recompute.SELECTIVE: max(core_again - 9 * attention_width - 2 * width, feed_forward + masked, end - output),
        Recompute.NONE: max(attention - whole - output + earlier, feed_forward + masked, end - output, back),
    }[recompute]
    # behind the final norm's backward pass its input and output are gone, and a gradient is there
    behind = -width if rank.has("head") else 0.0
    return rest._replace(activations=rest.activations + behind, working=rest.working + working)


def _in_the_loss(rank: RankSizes, rest: Moment, logits: float, graph: float, matrix: float) -> Moment:
    """Cross entropy or the head backward."""
    chunk = _FP32 * min(logits / rank.sizes.item, LOSS_CHUNK)
    # new logits are there before the buffer lets old ones go; their gradient takes their place
    forward = max(chunk, logits + graph if rank.microbatches > 2 else 0.0)
    return rest._replace(head=rest.head + max(forward, matrix + rank.width))


def _logits(config: TrainConfig, rank: RankSizes) -> float:
    if not rank.has("head"):
        return 0.0
    return rank.sizes.tokens * config.model.vocab_size / config.parallel.tensor * rank.sizes.item


def _softmax_backward(sizes: "TensorSizes", backend: AttentionBackend) -> float:
    """Two gradients of the eager kernel's attention weights, less what was kept for later steps."""
    if backend is not AttentionBackend.EAGER:
        return 0.0
    pairs = sizes.tokens * sizes.length * sizes.heads / sizes.tensor
    gone = (1 + sizes.item) if sizes.drops_weights else 0
    return pairs * (2 * sizes.item - gone)


def _core_backward(sizes: "TensorSizes", backend: AttentionBackend) -> float:
    """What the eager kernel holds when dropped weights, computed again, go back: they are there, and a gradient."""
    if backend is not AttentionBackend.EAGER or not sizes.drops_weights:
        return 0.0
    width = sizes.tokens * sizes.hidden / sizes.tensor * sizes.item
    pairs = sizes.tokens * sizes.length * sizes.heads / sizes.tensor
    return 4 * width + pairs * (3 * sizes.item + 1)


def _attention_core(config: TrainConfig, sizes: "TensorSizes", backend: AttentionBackend) -> float:
    """Most that the attention core holds at a time, beside queries, keys and values as they come."""
    item, width = sizes.item, sizes.tokens * sizes.hidden / sizes.tensor
    pairs = sizes.tokens * sizes.length * sizes.heads / sizes.tensor
    if backend is AttentionBackend.FLASH:
        return sizes.attention(backend)
    if backend is AttentionBackend.SDPA:
        bias = sizes.length**2 * sizes.heads / sizes.tensor * (_FP32 + (item if item != _FP32 else 0))
        copies = 6 if sizes.tokens > sizes.length else 5
        return copies * width * _FP32 + 2 * pairs * _FP32 + bias
    # products, scores, their softmax; or with dropout weights, which to keep, kept, scaled
    dropping = 3 * item + 1 if config.model.attention_dropout > 0.0 else 0
    apart = 2 * width * item if sizes.tokens > sizes.length else 0.0  # one sample is multiplied where it lies
    return apart + pairs * max(item + 2 * _FP32, dropping)
