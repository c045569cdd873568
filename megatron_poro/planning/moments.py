"""The moments of a step at which a process may hold most, beside what it holds all the time.

Passes through blocks are one: what is kept of all microbatches in flight, and what a block makes and drops on the way.
The loss is another, so is the gradient of the embedding. Which is the worst depends on the sizes. Gradients are added
to their sums as they are made and reduced where they lie, so that only those of one layer are ever beside them. Where
tensors live and die was read off simulated ranks (:mod:`megatron_poro.simulation.live_bytes`), and of reproducible runs
off real ones; tests hold the two against each other.
"""

from collections.abc import Sequence

from megatron_poro.config.run import AttentionBackend, Recompute, TrainConfig
from megatron_poro.planning.kernels import core_backward, core_forward, softmax_backward
from megatron_poro.planning.stage_sizes import Moment, StageSizes
from megatron_poro.planning.waiting import at_weight_gradients, messages

_FP32, _FP64 = 4, 8
LOSS_CHUNK = 1 << 24
"""Logits of which a GPU computes the loss at a time, in fp32."""


def worst_moment(config: TrainConfig, stage: StageSizes, *, backend: AttentionBackend) -> Moment:
    """The moment at which a process holds most while it works on one of its stages.

    Args:
        config: a valid config.
        stage: one that the process computes.
        backend: the attention kernel that will run, not ``auto``.
    """
    dual = not stage.in_order
    received = stage.width if config.parallel.pipeline > 1 else 0.0
    used = 0.0
    if stage.defers:
        received, used = messages(stage)
    # the stage of the loss has two buffers for outputs, and drops logits with their graph when one is used again
    buffers = 1 if dual else min(2, stage.microbatches)
    # over the logits their gradient is written, which may wait longer than a buffer holds it
    held_logits = max(buffers, 1 + stage.waiting)
    logits = _logits(config, stage)
    # which holds what the stage received, and its gradient
    graph = 2 * stage.width if stage.has("head") and not stage.has("embedding") else 0.0
    numbers = config.model.vocab_size / config.parallel.tensor * config.model.hidden_size
    matrix = numbers * stage.sizes.item
    ahead = back = Moment(*stage.held, (buffers - 1) * graph, held_logits * logits, received)
    back = back._replace(buffers=back.buffers + used)
    if dual:
        # the gradient that a pass back has used, and the one that the next will; and the graph of the last loss
        loss = 2 * stage.width if stage.is_first else 0.0
        # the first rank, whose own loss begins one half of the passes back, has used none if the pipeline just fills
        used = 0.0 if stage.is_first and stage.microbatches == 2 * config.parallel.pipeline else stage.width
        ahead = ahead._replace(buffers=received + stage.width + used + loss)
        back = back._replace(buffers=received + stage.width + (0.0 if stage.has("head") else loss))
    moments = [ahead, back]
    if stage.has("head"):
        own = 0.0 if stage.defers else matrix + stage.adding(numbers)
        moments += _in_the_loss(stage, ahead, back, logits, 0.0 if dual else graph, own)
        if stage.has("embedding"):  # one matrix in one graph: the head's gradient waits for the embedding's
            back = back._replace(working=back.working + matrix)
    for number in _telling_blocks(stage.blocks):
        moments += _at_block(config, stage, ahead, back, number, backend)
    if stage.has("embedding"):
        made = back.working + (2 if config.parallel.tensor > 1 else 1) * stage.width + matrix + stage.adding(numbers)
        moments.append(
            back._replace(
                activations=back.activations - stage.of_one.kept,
                deferred=back.deferred + stage.of_one.deferred,
                working=made,
            )
        )
        if not stage.blocks:  # the gradient of the norm's input
            moments.append(back._replace(working=back.working + stage.width))
    if stage.defers:
        moments += at_weight_gradients(stage, back, numbers)
    moments.append(ahead._replace(activations=0.0, deferred=0.0, working=_at_the_update(config, stage)))
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
    if stage.defers and number < len(blocks) - 1:
        backward += stage.width  # the gradient that the block behind has made waits too
    waiting = 0.0
    if stage.defers:
        waiting = (len(blocks) - 1 - number) * stage.sizes.waiting_block + stage.width * stage.has("head")
    return [
        rest._replace(
            activations=rest.activations - behind, deferred=rest.deferred + put_off, working=rest.working + working
        )
        for rest, put_off, working in ((ahead, 0.0, forward), (back, waiting, backward))
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
    numbers = 0.0 if stage.defers else 4 * sizes.hidden**2 / sizes.tensor
    weight = numbers * sizes.item + stage.adding(numbers)
    # with the gradient behind it, gathered where the sequence is cut
    gathered = sizes.tensor * width if sizes.sequence else 0.0
    of_gelu = 4 * attention_width
    feed_forward = of_gelu + weight + gathered
    if stage.defers:  # of GELU's output, and of its input, while both are still there
        feed_forward = 2 * of_gelu + gathered
    elif sizes.sequence:  # of the layer before it: GELU's gradient, and its input gathered; what GELU kept is gone
        feed_forward = max(feed_forward, sizes.entrance(weight) - of_gelu)
    # in a forward pass the stage's output is not there yet; at its end the attended and the expanded residual are
    output = 2 * width if stage.has("final_norm") else width
    end = (1 + (3 if sizes.drops else 2 if sizes.tensor > 1 else 1)) * width
    # what is kept of the feed-forward: up's output and GELU's; and of its norm: input and output
    expanded, of_its_norm = 8 * attention_width, 2 * width
    # when attention goes back they are gone, and the gradient of the residual stream is there
    softmax = softmax_backward(sizes, backend) - expanded - of_its_norm + width
    if stage.defers:  # or wait, as do as many gradients; and gradients of attended heads, and of values, are there
        values = attention_width if backend is AttentionBackend.EAGER else 0.0
        softmax = softmax_backward(sizes, backend) + attention_width + values + 2 * gathered
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
        around_again = attention_width + 2 * gathered if stage.defers else around
        return max(core + around, end - output), max(core_again + around_again, feed_forward + masked)
    ended = earlier if stage.in_order and not stage.has("embedding") else 0.0
    return max(attention - whole - output + earlier, end - output + ended), max(feed_forward + masked, softmax)


def _in_the_loss(
    stage: StageSizes, ahead: Moment, back: Moment, logits: float, graph: float, matrix: float
) -> list[Moment]:
    """Cross entropy, and the head backward, where its matrix has a gradient, and that what adding it up makes."""
    chunk = _FP32 * min(logits / stage.sizes.item, LOSS_CHUNK)
    # new logits are there before the buffer lets old ones go; their gradient takes their place
    old = logits + graph
    if stage.defers:  # old logits wait anyway where two passes do, and the gradient in their graph has been sent
        old = (logits if stage.waiting < 2 else 0.0) + graph - stage.width
    forward = max(chunk, old if stage.microbatches > 2 and graph else 0.0)
    if not stage.sizes.sequence:
        backward = matrix + stage.width
    elif stage.defers:  # the input's gradient, copied where there are several samples, and this rank's part of its sum
        whole = stage.width * stage.sizes.tensor
        backward = (2 if stage.sizes.tokens > stage.sizes.length else 1) * whole + stage.width
    else:
        backward = stage.sizes.entrance(matrix)
    return [ahead._replace(head=ahead.head + forward), back._replace(head=back.head + backward)]


def _logits(config: TrainConfig, stage: StageSizes) -> float:
    if not stage.has("head"):
        return 0.0
    return stage.sizes.tokens * config.model.vocab_size / config.parallel.tensor * stage.sizes.item
