"""The moments of a process that puts weight gradients off: its messages, and the passes that compute them."""

from megatron_poro.planning.stage_sizes import Moment, StageSizes


def messages(stage: StageSizes) -> tuple[float, float]:
    """What is there of messages that hold up nobody: all the time, and in a backward pass beside it.

    Of a gradient that was sent nothing is known before the stage before cannot have gone on without it; until then it
    is held, and where the loss is its graph has the last one anyway.
    """
    passes_back = max(0, stage.microbatches - 1 - stage.ranks_behind)  # before the last one with a full pipeline
    if stage.is_first:
        before = 0
    else:
        sent_and_next = min(passes_back, stage.ranks_behind + 3)
        before = 1 + sent_and_next - (stage.has("head") and passes_back > 0)  # and a place that says how large they are
    behind = 0 if stage.has("head") else min(1, stage.microbatches - 1)
    return stage.width * (before + behind), 0.0 if stage.has("head") else stage.width


def at_weight_gradients(stage: StageSizes, back: Moment, of_head: float) -> list[Moment]:
    """The products of a pass of weight gradients, each while what it is made of is still there."""
    sizes, tensor = stage.sizes, stage.sizes.tensor
    of_block, part = stage.sizes.hidden**2 / tensor, sizes.tokens * sizes.hidden / tensor * sizes.item
    whole = float(sizes.tokens * sizes.hidden * sizes.item)
    gathered = whole if sizes.sequence else 0.0
    products = []  # numbers of the weight, what the product is made of, what of its input is gathered
    if stage.has("head"):
        products.append((of_head, sizes.width, gathered))
    if stage.blocks:  # down, and up
        products += [(4 * of_block, 4 * part + whole, 0.0), (4 * of_block, sizes.width + 4 * part, gathered)]
    gone, moments = 0.0, []
    rest = back._replace(
        activations=back.activations - stage.of_one.kept, deferred=back.deferred + stage.of_one.deferred
    )
    for numbers, made_of, whole_input in products:
        # of several samples the gathered input is copied once, before there is a product
        made = whole_input + max(numbers * sizes.item + stage.adding(numbers), whole_input)
        moments.append(rest._replace(deferred=rest.deferred - gone, working=rest.working + made))
        gone += made_of
    return moments
