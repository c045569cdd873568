"""Where a list of layers is cut into pipeline stages, and who holds which: arithmetic, without torch."""

from collections.abc import Sequence

from megatron_poro.errors import TopologyError


def stage_boundaries(weights: Sequence[float], num_stages: int) -> tuple[int, ...]:
    """Cuts a list of layers into consecutive stages whose heaviest one is as light as possible.

    Layers of weight 0 stay with the layer before them, except leading ones. Among equally good cuts the one whose
    stages differ least (smallest sum of squares) wins, then the one that gives earlier stages more.

    Args:
        weights: weight of each layer, 0 for those that do not count.
        num_stages: number of stages.

    Returns:
        ``num_stages + 1`` positions; stage ``i`` is ``[bounds[i], bounds[i+1])``.

    Raises:
        TopologyError: if there are fewer counted layers than stages.
    """
    cuts = [i for i, weight in enumerate(weights) if weight > 0]
    if len(cuts) < num_stages:
        raise TopologyError(
            f"parallel.pipeline={num_stages} needs at least {num_stages} layers to deal out, the model has "
            f"{len(cuts)}. Use fewer stages or more layers."
        )
    heavy = [weights[i] for i in cuts]
    starts = _balanced_starts(heavy, num_stages)
    return (0, *(cuts[start] for start in starts[1:]), len(weights))


def rank_of_stage(stage: int, *, ranks: int) -> int:
    """The pipeline rank that computes a stage.

    More stages than ranks are folded: the second half of the model runs back, so that both ends of it are on rank 0.

    Source: DualPipeV, DeepSeek-V3 (arXiv:2412.19437).
    """
    return stage if stage < ranks else 2 * ranks - 1 - stage


def stages_of_rank(rank: int, *, ranks: int, num_stages: int) -> tuple[int, ...]:
    """The stages that a pipeline rank computes, in the order of the model: see :func:`rank_of_stage`."""
    return tuple(stage for stage in range(num_stages) if rank_of_stage(stage, ranks=ranks) == rank)


def _balanced_starts(weights: Sequence[float], num_stages: int) -> list[int]:
    """First item of each stage for the cut that minimises (heaviest stage, sum of squares), by dynamic programming."""
    count = len(weights)
    prefix = [0.0]
    for weight in weights:
        prefix.append(prefix[-1] + weight)
    # best[i]: cheapest way to cut the first i items into the stages so far, with the first item of each stage
    best: dict[int, tuple[tuple[float, float], list[int]]] = {0: ((0.0, 0.0), [])}
    for stage in range(num_stages):
        following: dict[int, tuple[tuple[float, float], list[int]]] = {}
        for end in range(stage + 1, count - (num_stages - stage - 1) + 1):
            for start, ((heaviest, squares), starts) in best.items():
                if start >= end:
                    continue
                load = prefix[end] - prefix[start]
                candidate = ((max(heaviest, load), squares + load * load), [*starts, start])
                # at equal cost a later start leaves more to the earlier stages
                if end not in following or (candidate[0], [-s for s in candidate[1]]) < (
                    following[end][0],
                    [-s for s in following[end][1]],
                ):
                    following[end] = candidate
        best = following
    return best[count][1]


def weigh(layers: Sequence[tuple[float, bool]], *, by_cost: bool) -> list[float]:
    """What each layer weighs when it is cut into stages: its cost, or 1 where it counts.

    Counting layers, cost only decides between cuts that are equal otherwise.

    Args:
        layers: cost of each layer, and whether it counts when stages are balanced by number of layers.
        by_cost: stages of equal cost instead of equal numbers of layers.
    """
    if by_cost:
        return [cost for cost, _ in layers]
    whole = sum(cost for cost, _ in layers) or 1.0
    return [1.0 + 1e-3 * cost / whole if counts else 0.0 for cost, counts in layers]
