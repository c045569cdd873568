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

from megatron_poro.config.run import AttentionBackend, Recompute, TrainConfig
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
class StageSizes:
    """What the moments of a stage are made of, in bytes.

    Attributes:
        layers: of the stage.
        sizes: of the tensors of a microbatch.
        kept: most that forward passes have left behind on the rank while a microbatch is in this stage.
        of_one: of it, what this microbatch leaves behind.
        microbatches: of a step.
        is_first: whether the stage is on the first pipeline rank.
        in_order: whether the schedule is 1F1B.
    """

    layers: Sequence[LayerSize]
    sizes: "TensorSizes"
    kept: float
    of_one: float
    microbatches: int
    is_first: bool
    in_order: bool

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


def worst_moment(config: TrainConfig, rank: StageSizes, *, backend: AttentionBackend) -> Moment:
    """The moment at which a process of a rank holds most.

    Args:
        config: a valid config.
        rank: its sizes.
        backend: the attention kernel that will run, not ``auto``.
    """
    dual = not rank.in_order
    received = rank.width if config.parallel.pipeline > 1 else 0.0
    # the stage of the loss has two buffers for outputs, and drops logits with their graph when one is used again
    buffers = 1 if dual else min(2, rank.microbatches)
    logits = _logits(config, rank)
    # which holds what the stage received, and its gradient
    graph = 2 * rank.width if rank.has("head") and not rank.has("embedding") else 0.0
    matrix = config.model.vocab_size / config.parallel.tensor * config.model.hidden_size * rank.sizes.item
    ahead = back = Moment(rank.kept, (buffers - 1) * graph, buffers * logits, received)
    if dual:
        # the gradient that a pass back has used, and the one that the next will; and the graph of the last loss
        loss = 2 * rank.width if rank.is_first else 0.0
        # the first rank, whose own loss begins one half of the passes back, has used none if the pipeline just fills
        used = 0.0 if rank.is_first and rank.microbatches == 2 * config.parallel.pipeline else rank.width
        ahead = ahead._replace(buffers=received + rank.width + used + loss)
        back = back._replace(buffers=received + rank.width + (0.0 if rank.has("head") else loss))
    moments = [ahead, back]
    if rank.has("head"):
        moments += _in_the_loss(rank, ahead, back, logits, 0.0 if dual else graph, matrix)
        if rank.has("embedding"):  # one matrix in one graph: the head's gradient waits for the embedding's
            back = back._replace(working=back.working + matrix)
    for number in _telling_blocks(rank.blocks):
        moments += _at_block(config, rank, ahead, back, number, backend)
    if rank.has("embedding"):
        made = back.working + (2 if config.parallel.tensor > 1 else 1) * rank.width + matrix
        moments.append(back._replace(activations=back.activations - rank.of_one, working=made))
        if not rank.blocks:  # the gradient of the norm's input
            moments.append(back._replace(working=back.working + rank.width))
    return max(moments, key=sum)


def _telling_blocks(blocks: Sequence[Recompute]) -> list[int]:
    """The last block of a stage, the first, and the last of those that recompute what the ones behind do not."""
    last = len(blocks) - 1
    return [n for n in range(len(blocks)) if n in (0, last) or blocks[n] is not blocks[n + 1]]


def _at_block(
    config: TrainConfig, rank: StageSizes, ahead: Moment, back: Moment, number: int, backend: AttentionBackend
) -> list[Moment]:
    """A block of a stage, forward and backward: those behind it are not there yet, or have gone back."""
    blocks = rank.blocks
    behind = sum(rank.sizes.kept_block(backend, recompute) for recompute in blocks[number + 1 :])
    # behind the final norm's backward pass its input and output are gone, and a gradient is there
    behind += rank.width if rank.has("head") else 0.0
    forward, backward = _in_a_block(config, rank, blocks[number], backend)
    return [
        rest._replace(activations=rest.activations - behind, working=rest.working + working)
        for rest, working in ((ahead, forward), (back, backward))
    ]


def _in_a_block(
    config: TrainConfig, rank: StageSizes, recompute: Recompute, backend: AttentionBackend
) -> tuple[float, float]:
    """What a block makes beside what it keeps, forward and backward, with what it computes again."""
    sizes, width = rank.sizes, rank.width
    attention_width = sizes.tokens * sizes.hidden / sizes.tensor * sizes.item
    whole = sizes.block(backend, selective=False) - width  # its input is kept in any case
    core = _attention_core(config, sizes, backend)
    # of the attention: the norm's output and statistics, queries, keys and values in one, and the core
    attention = width + 2 * sizes.tokens * sizes.item + 3 * attention_width + core
    # gradients of GELU's output and of the weight that it is multiplied with, beside all that the block has kept
    weight = 4 * sizes.hidden**2 / sizes.tensor * sizes.item
    # with the gradient behind it, gathered where the sequence is cut
    gathered = sizes.tensor * width if sizes.sequence else 0.0
    feed_forward = 4 * attention_width + weight + gathered
    if sizes.sequence:  # of the layer before it: GELU's gradient, and its input gathered; what GELU kept is gone
        feed_forward = max(feed_forward, sizes.entrance(weight) - 4 * attention_width)
    # in a forward pass the stage's output is not there yet; at its end the attended and the expanded residual are
    output = 2 * width if rank.has("final_norm") else width
    end = (1 + (3 if sizes.drops else 2 if sizes.tensor > 1 else 1)) * width
    # softmax backward has two gradients of the weights of every pair, and what followed it is gone
    softmax = _softmax_backward(sizes, backend) - 8 * attention_width - width
    # the loss of the microbatch before has not let go of its graph where a forward pass is under way
    earlier = 3 * width if rank.has("head") and rank.microbatches > 2 else 0.0
    core_again = max(core, _core_backward(sizes, backend))
    # the gradient behind a mask; where nothing follows the last product, recomputation ends before it
    masked = width if sizes.drops else 0.0
    if recompute is Recompute.FULL:
        again = max(attention + gathered, whole + feed_forward, whole + end if sizes.drops else 0.0, whole + softmax)
        return attention, again + masked
    if recompute is Recompute.SELECTIVE:
        around = -9 * attention_width - 2 * width
        return max(core + around, end - output), max(core_again + around, feed_forward + masked)
    ended = earlier if rank.in_order and not rank.has("embedding") else 0.0
    return max(attention - whole - output + earlier, end - output + ended), max(feed_forward + masked, softmax)


def _in_the_loss(
    rank: StageSizes, ahead: Moment, back: Moment, logits: float, graph: float, matrix: float
) -> list[Moment]:
    """Cross entropy, and the head backward."""
    chunk = _FP32 * min(logits / rank.sizes.item, LOSS_CHUNK)
    # new logits are there before the buffer lets old ones go; their gradient takes their place
    forward = max(chunk, logits + graph if rank.microbatches > 2 and graph else 0.0)
    backward = rank.sizes.entrance(matrix) if rank.sizes.sequence else matrix + rank.width
    return [ahead._replace(head=ahead.head + forward), back._replace(head=back.head + backward)]


def _logits(config: TrainConfig, rank: StageSizes) -> float:
    if not rank.has("head"):
        return 0.0
    return rank.sizes.tokens * config.model.vocab_size / config.parallel.tensor * rank.sizes.item


def _softmax_backward(sizes: "TensorSizes", backend: AttentionBackend) -> float:
    """Two gradients of the eager kernel's attention weights, less what was kept for later steps."""
    pairs = sizes.tokens * sizes.length * sizes.heads / sizes.tensor
    if backend is AttentionBackend.SDPA:
        return 2 * pairs * _FP32
    if backend is AttentionBackend.FLASH:
        return 0.0
    gone = (1 + sizes.item) if sizes.drops_weights else 0
    return pairs * (2 * sizes.item - gone)


def _core_backward(sizes: "TensorSizes", backend: AttentionBackend) -> float:
    """What a kernel holds when attention weights, computed again, go back: they are there, and gradients.

    Without dropout the eager kernel holds more of them forward.
    """
    if backend is AttentionBackend.SDPA:
        pairs = sizes.tokens * sizes.length * sizes.heads / sizes.tensor
        return (4 * sizes.tokens * sizes.hidden / sizes.tensor + 3 * pairs) * _FP32
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
