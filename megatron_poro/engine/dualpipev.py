"""DeepSpeed's DualPipeV with our stages and our optimizer, in a file of its own: older DeepSpeeds do not have it.

Source: DeepSeek's DualPipe; DeepSpeed ``runtime/pipe/dualpipev.py``, since 0.19.8.
"""

from deepspeed.runtime.pipe.dualpipev import DualPipeVEngine, DualPipeVModule

from megatron_poro.engine.deepspeed_engine import OwnOptimizer
from megatron_poro.engine.stages import PlannedModule


class PlannedDualModule(DualPipeVModule, PlannedModule):  # type: ignore[misc]
    """The stages of a plan for DualPipeV: this process's stage and its mirror image."""


class DualPipeV(OwnOptimizer, DualPipeVEngine):  # type: ignore[misc]
    """DeepSpeed's DualPipeV engine."""
