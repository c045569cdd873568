"""DeepSpeed's pipeline engines, kept from wrapping an optimizer: they run schedules, and gradients are not theirs.

Not even to divide: by the accumulation steps newer releases divide the loss, 0.19.3 the gradient of the last stage's
output, which rounds elsewhere and keeps a second one. Sums of a step are averaged in one place, and it is not here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.pipe.engine import PipelineEngine as DeepSpeedPipelineEngine
from torch import Tensor, nn

from megatron_poro.engine.stages import quiet

OptimizerOf = Callable[[], torch.optim.Optimizer]


class OwnOptimizer:
    """For a DeepSpeed engine: takes the optimizer as it is, for bf16 weights too, and gradients as they come.

    DeepSpeed's wrappers for bf16 keep each microbatch's gradients beside their sums, and reduce the sums whole.
    """

    optimizer: torch.optim.Optimizer
    basic_optimizer: torch.optim.Optimizer

    def _configure_optimizer(self, client_optimizer: OptimizerOf, model_parameters: Sequence[nn.Parameter]) -> None:
        # the module is on its device, and as everywhere, by now
        self.optimizer = self.basic_optimizer = client_optimizer()

    def _backward_prologue_per_tensor(self, grad: Tensor | None) -> Tensor | None:
        return grad


class OneForwardOneBackward(OwnOptimizer, DeepSpeedPipelineEngine):  # type: ignore[misc]
    """DeepSpeed's 1F1B engine."""


def start_deepspeed(
    module: Any, settings: dict[str, Any], optimizer: OptimizerOf, *, kind: type[Any] = OneForwardOneBackward
) -> Any:
    """Wraps a module in DeepSpeed's engine, as ``deepspeed.initialize`` does for a pipeline, with our subclass.

    Args:
        module: of :func:`megatron_poro.engine.stages.build_stages`.
        settings: of :func:`megatron_poro.engine.deepspeed_config.deepspeed_config`.
        optimizer: makes the optimizer, once the module's parameters are where they stay.
        kind: the subclass.
    """
    with quiet():
        engine = kind(
            args=None,
            model=module,
            optimizer=optimizer,
            mpu=module.mpu(),
            config=settings,
            config_class=DeepSpeedConfig(settings, module.mpu()),
        )
    # its schedules have them by now; what asks from here on divides by them
    engine.gradient_accumulation_steps = _one
    return engine


def _one() -> int:
    return 1
