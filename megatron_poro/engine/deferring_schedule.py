"""1F1B with weight gradients put off, as instructions of DeepSpeed's engine.

The order of passes is that of :func:`megatron_poro.parallel.schedules.work_order`. What a pass has made is sent at
once, and what the next one needs is taken when its turn comes: with DeepSpeed's instructions, where both ends of a
message wait for each other, a rank that puts weight gradients off cannot get ahead of the one before it, and gains
nothing (a test shows it).
"""

from collections.abc import Iterator

from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.schedule import BufferOpInstruction, PipeInstruction

from megatron_poro.config.run import PipelineSchedule
from megatron_poro.parallel.schedules import Pass, Work, work_order


class TakeActivation(BufferOpInstruction):  # type: ignore[misc]
    """Waits for the input of a forward pass."""


class PostActivation(BufferOpInstruction):  # type: ignore[misc]
    """Begins to send what a forward pass has made."""


class TakeGradient(BufferOpInstruction):  # type: ignore[misc]
    """Waits for the gradient of what a forward pass has made."""


class PostGradient(BufferOpInstruction):  # type: ignore[misc]
    """Begins to send the gradient of a forward pass's input."""


class WeightGradientPass(PipeInstruction):  # type: ignore[misc]
    """Computes the weight gradients of the oldest backward pass of which they wait."""


class DeferringSchedule(schedule.TrainSchedule):  # type: ignore[misc]
    """One step of a process.

    Args:
        micro_batches, stages, stage_id: as DeepSpeed's.
        deferred: ``engine.deferred_weight_gradients``.
    """

    def __init__(self, micro_batches: int, stages: int, stage_id: int, *, deferred: int) -> None:
        super().__init__(micro_batches, stages, stage_id)
        self._deferred = deferred

    def steps(self) -> Iterator[list[PipeInstruction]]:
        """Yields instructions as DeepSpeed does."""
        for work in work_order(
            PipelineSchedule.ONE_F_ONE_B,
            ranks=self.stages,
            rank=self.stage_id,
            microbatches=self.micro_batches,
            deferred=self._deferred,
        ):
            yield list(self._instructions(work))
        yield [schedule.ReduceTiedGrads(), schedule.ReduceGrads(), schedule.OptimizerStep()]

    def _instructions(self, work: Work) -> Iterator[PipeInstruction]:
        buffer, is_first, is_last = self._buffer_idx(work.microbatch), self.is_first_stage, self.is_last_stage
        if work.kind is Pass.FORWARD:
            if not is_first:
                yield TakeActivation(buffer)
            if is_first or is_last:
                yield schedule.LoadMicroBatch(buffer)
            yield schedule.ForwardPass(buffer)
            if not is_last:
                yield PostActivation(buffer)
        elif work.kind is Pass.BACKWARD:
            if not is_last:
                yield TakeGradient(buffer)
            yield schedule.BackwardPass(buffer)
            if not is_first:
                yield PostGradient(buffer)
        else:
            yield WeightGradientPass()
