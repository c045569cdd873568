"""What each rank of a pipeline computes in a step, in order: arithmetic, without torch.

1F1B with weight gradients put off runs in the order that is written here. The others are DeepSpeed's own, and a test
holds these against them.
"""

import functools
from enum import Enum
from typing import NamedTuple

from megatron_poro.config.derived import deferred_passes, stages_of_pipeline
from megatron_poro.config.run import PipelineSchedule
from megatron_poro.parallel.stages import stages_of_rank


class Pass(str, Enum):
    """What a piece of work computes."""

    FORWARD = "forward"
    BACKWARD = "backward"
    WEIGHT_GRADIENTS = "weight gradients"
    """Of linear layers, where they are put off; else they are part of a backward pass."""


class Work(NamedTuple):
    """One pass of one microbatch through one stage.

    Attributes:
        kind: what is computed.
        stage: position in the model; under DualPipeV a rank has two.
        microbatch: number within the step.
    """

    kind: Pass
    stage: int
    microbatch: int


@functools.lru_cache(maxsize=1024)  # a search asks for the same orders again and again
def work_order(
    schedule: PipelineSchedule, *, ranks: int, rank: int, microbatches: int, deferred: int | None = None
) -> tuple[Work, ...]:
    """What a rank computes in one step, in order.

    Args:
        schedule: 1F1B or DualPipeV.
        ranks: pipeline ranks.
        rank: one of them.
        microbatches: of one replica.
        deferred: ``engine.deferred_weight_gradients``.

    Source: 1F1B, Narayanan et al. 2019 (PipeDream-Flush, arXiv:2006.09503), with weight gradients put off ZB-H1, Qi et
    al. 2023 (arXiv:2401.10241); DualPipeV, DeepSeek-V3 (arXiv:2412.19437), as DeepSpeed runs it, weight gradients
    inside the backward pass.
    """
    if schedule is PipelineSchedule.DUALPIPEV:
        return tuple(_dualpipev(ranks, rank, microbatches))
    warmup, waiting = min(ranks - rank - 1, microbatches), deferred_passes(deferred, rank)
    order = [Work(Pass.FORWARD, rank, number) for number in range(warmup)]
    for number in range(microbatches):
        if warmup + number < microbatches:
            order.append(Work(Pass.FORWARD, rank, warmup + number))
        order.append(Work(Pass.BACKWARD, rank, number))
        if waiting is not None and number >= waiting:
            order.append(Work(Pass.WEIGHT_GRADIENTS, rank, number - waiting))
    left = 0 if waiting is None else min(waiting, microbatches)
    return (*order, *(Work(Pass.WEIGHT_GRADIENTS, rank, microbatches - left + number) for number in range(left)))


def _dualpipev(ranks: int, rank: int, microbatches: int) -> list[Work]:
    """Letters are passes, digits the half of the model: F1 is a forward pass of the second half."""
    before = ranks - rank - 1
    pattern = "F0 " * (2 * before)
    pattern += "F0 F1 " * (rank + 1)
    pattern += "B1 F1 " * before
    pattern += "F0 B1 F1 B0 " * (microbatches - 2 * ranks + rank + 1)
    pattern += "B1 F1 B0 " * before
    pattern += "B1 B0 " * (rank + 1)
    pattern += "B0 " * before
    stages = stages_of_rank(rank, ranks=ranks, num_stages=stages_of_pipeline(PipelineSchedule.DUALPIPEV, ranks))
    done: dict[str, int] = {}
    order = []
    for token in pattern.split():
        number = done.get(token, 0)
        done[token] = number + 1
        order.append(Work(Pass.FORWARD if token[0] == "F" else Pass.BACKWARD, stages[int(token[1])], number))
    return order
