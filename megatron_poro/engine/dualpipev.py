"""DeepSpeed's DualPipeV with our stages and our step, in a file of its own: older DeepSpeeds do not have it.

Source: DeepSeek's DualPipe; DeepSpeed ``runtime/pipe/dualpipev.py``, since 0.19.8.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.dualpipev import DualPipeVEngine, DualPipeVModule

from megatron_poro.engine.stages import PlannedModule


class PlannedDualModule(DualPipeVModule, PlannedModule):  # type: ignore[misc]
    """The stages of a plan for DualPipeV: this process's stage and its mirror image."""


class DualPipeV(DualPipeVEngine):  # type: ignore[misc]
    """DeepSpeed's DualPipeV engine, with the optimizer step handed back to us."""

    take_step: Callable[[], None]

    def _exec_optimizer_step(self, lr_kwargs: Any = None) -> None:
        self.take_step()

    _INSTRUCTION_MAP: ClassVar[dict[type, Callable[..., None]]] = {
        **DualPipeVEngine._INSTRUCTION_MAP,
        schedule.OptimizerStep: _exec_optimizer_step,
    }
