"""DeepSpeed's 1F1B engine with weight gradients put off: its passes, our order, messages and third kind of pass."""

from collections.abc import Callable
from typing import Any, ClassVar

from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.engine import PipelineEngine as DeepSpeedPipelineEngine
from torch import Tensor

from megatron_poro.engine import deferring_schedule as deferring
from megatron_poro.engine.deepspeed_engine import OwnOptimizer
from megatron_poro.parallel.lanes import Lanes
from megatron_poro.parallel.weight_gradients import DeferredWeightGradients, defer_weight_gradients


class DeferringEngine(OwnOptimizer, DeepSpeedPipelineEngine):  # type: ignore[misc]
    """Trains in steps of :class:`~megatron_poro.engine.deferring_schedule.DeferringSchedule`; evaluates as DeepSpeed's.

    Call :meth:`defer` before the first step.
    """

    pipe_recv_buf: Tensor | None
    grad_layer: Tensor | None
    first_output_send: bool

    def defer(self, deferred: int, lanes: Lanes) -> None:
        """Sets up what a step needs.

        Args:
            deferred: ``engine.deferred_weight_gradients``.
            lanes: for the messages of training steps.
        """
        self._deferred, self._lanes, self._weight_gradients = deferred, lanes, DeferredWeightGradients()
        defer_weight_gradients(self.module, self._weight_gradients)

    def _exec_schedule(self, pipe_schedule: Any) -> None:
        if not isinstance(pipe_schedule, schedule.TrainSchedule):
            super()._exec_schedule(pipe_schedule)
            return
        self._weight_gradients.start_step()
        self._lanes.start_step(pipe_schedule.micro_batches)
        super()._exec_schedule(
            deferring.DeferringSchedule(
                pipe_schedule.micro_batches, pipe_schedule.stages, pipe_schedule.stage_id, deferred=self._deferred
            )
        )
        self._lanes.finish()

    def _exec_take_activation(self, buffer_id: int) -> None:
        assert self._lanes.activations_in is not None
        if self.pipe_recv_buf is None:  # the first one is announced with its shape
            self.pipe_recv_buf = self._recv_tensor_meta(self.prev_stage)
        self.pipe_buffers["inputs"][buffer_id] = self._lanes.activations_in.take(self.pipe_recv_buf).requires_grad_()

    def _exec_post_activation(self, buffer_id: int) -> None:
        assert self._lanes.activations_out is not None
        outputs = self.pipe_buffers["outputs"][buffer_id]
        if self.first_output_send:
            self.first_output_send = False
            self._send_tensor_meta(outputs, self.next_stage)
        self._lanes.activations_out.post(outputs)

    def _exec_take_gradient(self, buffer_id: int) -> None:
        assert self._lanes.gradients_in is not None
        self.grad_layer = self._lanes.gradients_in.take(self.pipe_buffers["outputs"][buffer_id])

    def _exec_backward_pass(self, buffer_id: int) -> None:
        super()._exec_backward_pass(buffer_id)
        self.grad_layer = None
        self._weight_gradients.end_pass()

    def _exec_post_gradient(self, buffer_id: int) -> None:
        assert self._lanes.gradients_out is not None
        self._lanes.gradients_out.post(self.pipe_buffers["inputs"][buffer_id].grad)
        self.pipe_buffers["inputs"][buffer_id] = None

    def _exec_weight_gradients(self) -> None:
        self._weight_gradients.compute_oldest()

    _INSTRUCTION_MAP: ClassVar[dict[type, Callable[..., None]]] = {
        **DeepSpeedPipelineEngine._INSTRUCTION_MAP,
        schedule.BackwardPass: _exec_backward_pass,
        deferring.TakeActivation: _exec_take_activation,
        deferring.PostActivation: _exec_post_activation,
        deferring.TakeGradient: _exec_take_gradient,
        deferring.PostGradient: _exec_post_gradient,
        deferring.WeightGradientPass: _exec_weight_gradients,
    }
