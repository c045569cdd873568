"""Which blocks of a pipeline rank are recomputed, where a run says how many: arithmetic, without torch."""

from collections.abc import Sequence

from megatron_poro.errors import ConfigError
from megatron_poro.parallel.stages import stages_of_rank


def recomputed_blocks(is_block: Sequence[bool], bounds: Sequence[int], counts: Sequence[int]) -> frozenset[int]:
    """Numbers of the blocks that are recomputed: the first ones of each pipeline rank, in the order of the model.

    The last ones of a stage go back first, so that what they have kept is gone when the first are computed again. Of
    the two stages that DualPipeV gives a rank, the one that is earlier in the model holds its activations longer.

    Args:
        is_block: of each layer of the model, first to last.
        bounds: where stages begin and end, see :func:`~megatron_poro.parallel.stages.stage_boundaries`.
        counts: ``engine.recompute_blocks``, one number for each pipeline rank.

    Raises:
        ConfigError: if a rank has fewer blocks than it is to recompute.
    """
    num_stages, ranks = len(bounds) - 1, len(counts)
    found: set[int] = set()
    for rank, count in enumerate(counts):
        held = [
            sum(is_block[:layer])
            for stage in stages_of_rank(rank, ranks=ranks, num_stages=num_stages)
            for layer in range(bounds[stage], bounds[stage + 1])
            if is_block[layer]
        ]
        if count > len(held):
            raise ConfigError(
                f"engine.recompute_blocks[{rank}]={count} is more than the {len(held)} blocks of pipeline rank {rank}. "
                f"Use 0 to {len(held)}."
            )
        found.update(held[:count])
    return frozenset(found)
