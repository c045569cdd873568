"""The moments of a step at which a process may hold most, beside what it holds all the time.

Passes through blocks are one: what is kept of all microbatches in flight, and what a block makes and drops on the way.
The loss is another, so is the gradient of the embedding. Which is the worst depends on the sizes. Gradients are added
to their sums as they are made and reduced where they lie, so that only those of one layer are ever beside them. Where
tensors live and die was read off simulated ranks (:mod:`megatron_poro.simulation.live_bytes`), and of reproducible runs
off real ones; tests hold the two against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron_poro.config.run import AttentionBackend, Recompute, TrainConfig
from megatron_poro.planning.kernels import core_backward, core_forward, softmax_backward
from megatron_poro.planning.layers import LayerSize
from megatron_poro.planning.tensor_sizes import TensorSizes

_FP32, _FP64, _INT64 = 4, 8, 8
LOSS_CHUNK = 1 << 24
"""Logits of which a GPU computes the loss at a time, in fp32."""


class Moment(NamedTuple):
    """Bytes of a process at one moment, beside weights, sums of gradients, optimizer and constants.

    Attributes:
        activations: what forward passes have left for backward passes.
        working: what is made and dropped again on the way.
        head: logits and what the loss makes of them.
        buffers: what the stage received; under DualPipeV also the gradients that passes have used and will use, and the
            graph of the last loss.
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
        exact: whether gradients are added up in integers.
        share: numbers whose masters and moments the process keeps, of all its stages.
    """

    layers: Sequence[LayerSize]
    sizes: TensorSizes
    kept: float
    of_one: float
    microbatches: int
    is_first: bool
    in_order: bool
    exact: bool
    share: float

    @property
    def width(self) -> float:
        """One microbatch between two layers."""
        return self.sizes.width

    @property
    def blocks(self) -> list[Recompute]:
        """What is recomputed of each block of the stage."""
        return [layer.recompute for layer in self.layers if layer.is_block]

    def adding(self, numbers: float) -> float:
        """What adding up a gradient of so many numbers makes: exact sums make fp64 of it, and integers of that."""
        return (_FP64 + _INT64) * numbers if self.exact else 0.0

    def has(self, role: str) -> bool:
        """Whether the stage has a layer."""
        return any(layer.role == role for layer in self.layers)


def worst_moment(config: TrainConfig, stage: StageSizes, *, backend: AttentionBackend) -> Moment:
    """The moment at which a process holds most while it works on one of its stages.

    Args:
        config: a valid config.
        stage: one that the process computes.
        backend: the attention kernel that will run, not ``auto``.
    """
    dual = not stage.in_order
    received = stage.width if config.parallel.pipeline > 1 else 0.0
    # the stage of the loss has two buffers for outputs, and drops logits with their graph when one is used again
    buffers = 1 if dual else min(2, stage.microbatches)
    logits = _logits(config, stage)
    # which holds what the stage received, and its gradient
    graph = 2 * stage.width if stage.has("head") and not stage.has("embedding") else 0.0
    numbers = config.model.vocab_size / config.parallel.tensor * config.model.hidden_size
    matrix = numbers * stage.sizes.item
    ahead = back = Moment(stage.kept, (buffers - 1) * graph, buffers * logits, received)
    if dual:
        # the gradient that a pass back has used, and the one that the next will; and the graph of the last loss
        loss = 2 * stage.width if stage.is_first else 0.0
        # the first rank, whose own loss begins one half of the passes back, has used none if the pipeline just fills
        used = 0.0 if stage.is_first and stage.microbatches == 2 * config.parallel.pipeline else stage.width
        ahead = ahead._replace(buffers=received + stage.width + used + loss)
        back = back._replace(buffers=received + stage.width + (0.0 if stage.has("head") else loss))
    moments = [ahead, back]
    if stage.has("head"):
        moments += _in_the_loss(stage, ahead, back, logits, 0.0 if dual else graph, matrix + stage.adding(numbers))
        if stage.has("embedding"):  # one matrix in one graph: the head's gradient waits for the embedding's
            back = back._replace(working=back.working + matrix)
    for number in _telling_blocks(stage.blocks):
        moments += _at_block(config, stage, ahead, back, number, backend)
    if stage.has("embedding"):
        made = back.working + (2 if config.parallel.tensor > 1 else 1) * stage.width + matrix + stage.adding(numbers)
        moments.append(back._replace(activations=back.activations - stage.of_one, working=made))
        if not stage.blocks:  # the gradient of the norm's input
            moments.append(back._replace(working=back.working + stage.width))
    moments.append(ahead._replace(activations=0.0, working=_at_the_update(config, stage)))
    return max(moments, key=sum)


def _at_the_update(config: TrainConfig, stage: StageSizes) -> float:
    """What is made when passes have ended, in a reproducible run: fp64 of the largest exact sum as it is rounded to
    fp32, then the root of the second moment of this replica's share, which a fused update has in registers.
    """
    if not stage.exact:
        return 0.0
    tensor = config.parallel.tensor
    largest = max((size.held(tensor) for layer in stage.layers for size in layer.sizes), default=0)
    return max(_FP64 * largest, _FP32 * stage.share)


def _telling_blocks(blocks: Sequence[Recompute]) -> list[int]:
    """The last block of a stage, the first, and the last of those that recompute what the ones behind do not."""
    last = len(blocks) - 1
    return [n for n in range(len(blocks)) if n in (0, last) or blocks[n] is not blocks[n + 1]]


def _at_block(
    config: TrainConfig, stage: StageSizes, ahead: Moment, back: Moment, number: int, backend: AttentionBackend
) -> list[Moment]:
    """A block of a stage, forward and backward: those behind it are not there yet, or have gone back."""
    blocks = stage.blocks
    behind = sum(stage.sizes.kept_block(backend, recompute) for recompute in blocks[number + 1 :])
    # behind the final norm's backward pass its input and output are gone, and a gradient is there
    behind += stage.width if stage.has("head") else 0.0
    forward, backward = _in_a_block(config, stage, blocks[number], backend)
    return [
        rest._replace(activations=rest.activations - behind, working=rest.working + working)
        for rest, working in ((ahead, forward), (back, backward))
    ]


def _in_a_block(
    config: TrainConfig, stage: StageSizes, recompute: Recompute, backend: AttentionBackend
) -> tuple[float, float]:
    """What a block makes beside what it keeps, forward and backward, with what it computes again."""
    sizes, width = stage.sizes, stage.width
    attention_width = sizes.tokens * sizes.hidden / sizes.tensor * sizes.item
    whole = sizes.block(backend, selective=False) - width  # its input is kept in any case
    core = core_forward(sizes, backend)
    # of the attention: the norm's output and statistics, queries, keys and values in one, and the core
    attention = width + 2 * sizes.tokens * sizes.item + 3 * attention_width + core
    # gradients of GELU's output and of the weight that it is multiplied with, beside all that the block has kept
    numbers = 4 * sizes.hidden**2 / sizes.tensor
    weight = numbers * sizes.item + stage.adding(numbers)
    # with the gradient behind it, gathered where the sequence is cut
    gathered = sizes.tensor * width if sizes.sequence else 0.0
    of_gelu = 4 * attention_width
    feed_forward = of_gelu + weight + gathered
    if sizes.sequence:  # of the layer before it: GELU's gradient, and its input gathered; what GELU kept is gone
        feed_forward = max(feed_forward, sizes.entrance(weight) - of_gelu)
    # in a forward pass the stage's output is not there yet; at its end the attended and the expanded residual are
    output = 2 * width if stage.has("final_norm") else width
    end = (1 + (3 if sizes.drops else 2 if sizes.tensor > 1 else 1)) * width
    # what is kept of the feed-forward: up's output and GELU's; and of its norm: input and output
    expanded, of_its_norm = 8 * attention_width, 2 * width
    # when attention goes back they are gone, and the gradient of the residual stream is there
    softmax = softmax_backward(sizes, backend) - expanded - of_its_norm + width
    # the loss of the microbatch before has not let go of its graph where a forward pass is under way: input and output
    # of the final norm, and a gradient
    earlier = 3 * width if stage.has("head") and stage.microbatches > 2 else 0.0
    core_again = max(core, core_backward(sizes, backend))
    # the gradient behind a mask; where nothing follows the last product, recomputation ends before it
    masked = width if sizes.drops else 0.0
    if recompute is Recompute.FULL:
        again = max(attention + gathered, whole + feed_forward, whole + end if sizes.drops else 0.0, whole + softmax)
        return attention, again + masked
    if recompute is Recompute.SELECTIVE:
        # neither the attended heads nor what follows them is there yet, or any longer. Backward there are gradients of
        # both the heads and the residual stream; with them eager and sdpa were planned up to 3 % too high
        around = -attention_width - expanded - of_its_norm
        return max(core + around, end - output), max(core_again + around, feed_forward + masked)
    ended = earlier if stage.in_order and not stage.has("embedding") else 0.0
    return max(attention - whole - output + earlier, end - output + ended), max(feed_forward + masked, softmax)


def _in_the_loss(
    stage: StageSizes, ahead: Moment, back: Moment, logits: float, graph: float, matrix: float
) -> list[Moment]:
    """Cross entropy, and the head backward, where its matrix has a gradient, and that what adding it up makes."""
    chunk = _FP32 * min(logits / stage.sizes.item, LOSS_CHUNK)
    # new logits are there before the buffer lets old ones go; their gradient takes their place
    forward = max(chunk, logits + graph if stage.microbatches > 2 and graph else 0.0)
    backward = stage.sizes.entrance(matrix) if stage.sizes.sequence else matrix + stage.width
    return [ahead._replace(head=ahead.head + forward), back._replace(head=back.head + backward)]


def _logits(config: TrainConfig, stage: StageSizes) -> float:
    if not stage.has("head"):
        return 0.0
    return stage.sizes.tokens * config.model.vocab_size / config.parallel.tensor * stage.sizes.item
