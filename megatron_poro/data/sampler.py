"""Which samples a data rank sees in a step: arithmetic on one number, the samples consumed so far.

A step takes the next ``global_batch_samples`` samples of the mixture. They are dealt by accumulation step first and by
data rank within it, so that for any number of replicas and any microbatch size the same samples make up a step, and a
run can be continued on another layout without repeating or missing one.

Source: the ``single`` sampler of Megatron-DeepSpeed, megatron/data/data_samplers.py.
"""

from dataclasses import dataclass

from megatron_poro.errors import TopologyError


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How the samples of a step are dealt.

    Attributes:
        global_batch_samples: samples in one optimizer step, over all replicas.
        microbatch_samples: samples in one forward pass of one replica.
        data_size: number of replicas.

    Raises:
        TopologyError: if the replicas cannot share the batch in whole microbatches.
    """

    global_batch_samples: int
    microbatch_samples: int
    data_size: int

    def __post_init__(self) -> None:
        per_round = self.microbatch_samples * self.data_size
        if self.microbatch_samples < 1 or self.data_size < 1:
            raise TopologyError(
                f"engine.microbatch_samples={self.microbatch_samples} and the number of replicas {self.data_size} "
                "must be at least 1."
            )
        if self.global_batch_samples < 1 or self.global_batch_samples % per_round:
            raise TopologyError(
                f"schedule.global_batch_samples={self.global_batch_samples} is not a positive multiple of "
                f"engine.microbatch_samples={self.microbatch_samples} times {self.data_size} replicas = {per_round}: "
                "change one of the three."
            )

    @property
    def num_microbatches(self) -> int:
        """Forward passes of one replica in a step (accumulation steps)."""
        return self.global_batch_samples // (self.microbatch_samples * self.data_size)

    def microbatches(self, consumed_samples: int, data_rank: int) -> list[list[int]]:
        """Sample numbers of each microbatch of one data rank, in the order in which they are computed.

        Args:
            consumed_samples: samples of all steps before this one.
            data_rank: which replica.
        """
        per_round = self.microbatch_samples * self.data_size
        first = consumed_samples + data_rank * self.microbatch_samples
        starts = range(first, first + self.global_batch_samples, per_round)
        return [list(range(start, start + self.microbatch_samples)) for start in starts]
