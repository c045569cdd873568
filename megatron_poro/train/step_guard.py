"""Which steps may change the weights: those whose loss and gradient are finite and no spike.

A spike is told by the steps before it: the last accepted ones make a window, and a loss or gradient norm far above its
mean is refused. The gradient norm is compared on a logarithmic scale, because it varies by factors: on a plain scale
its ordinary large values lie six standard deviations out every few ten thousand steps. What was refused never enters
the window, so that neither a NaN nor a spike can make the guard blind to the next one.

The window is a part of the run's state (``meta.json``): a run that is stopped and resumed decides as one that was not.
Every process judges, because a gradient can be damaged in one of them; the objection of one is enough.

Source: the window of OLMo-core's SkipStepOptimizer (128 steps, 6 standard deviations), where refused steps do enter.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_poro.config.guards import GuardsConfig

_LEAST_RELATIVE_STD = 1e-3
"""A loss that hardly varies is not judged more finely than this share of it."""

_LEAST_LOG_STD = 0.02
"""The same for the logarithm of the gradient norm: 2 %."""


class StepGuard:
    """Judges steps, remembers the accepted ones, and counts those passed over since the last accepted one.

    Attributes:
        row: the steps passed over since the last accepted one, oldest first.
    """

    def __init__(self, config: GuardsConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.spike_window_steps)
        self._grad_norms: deque[float] = deque(maxlen=config.spike_window_steps)
        self.row: list[int] = []

    def accepts(self, loss: float, grad_norm: float) -> bool:
        """Whether a step may be taken; changes nothing. The gate that is given to the engine."""
        return self.objection(loss, grad_norm) is None

    def objection(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with a step, or None."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss:.6g} and gradient norm {grad_norm:.6g} are not both finite"
        if self._config.spike_sigma == 0 or len(self._losses) < self._config.spike_window_steps:
            return None
        limit = self._limit(self._losses, least_std=_LEAST_RELATIVE_STD * max(self._losses))
        if loss > limit:
            return f"loss {loss:.6g} is above {limit:.6g}{self._where_from()}"
        limit = math.exp(self._limit([_log(norm) for norm in self._grad_norms], least_std=_LEAST_LOG_STD))
        if grad_norm > limit:
            return f"gradient norm {grad_norm:.6g} is above {limit:.6g}{self._where_from()}"
        return None

    def accepted(self, loss: float, grad_norm: float) -> None:
        """Notes a step that was taken."""
        assert math.isfinite(loss), f"a step of loss {loss} was taken"
        assert math.isfinite(grad_norm), f"a step of gradient norm {grad_norm} was taken"
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)
        self.row.clear()

    def passed_over(self, step: int) -> None:
        """Notes a step that was refused."""
        self.row.append(step)

    @property
    def is_stuck(self) -> bool:
        """Whether so many steps in a row were refused that going on is of no use."""
        return 0 < self._config.max_skips_in_row <= len(self.row)

    def state(self) -> dict[str, Any]:
        """What a resumed run must know to decide alike; goes into ``meta.json``."""
        return {"losses": list(self._losses), "grad_norms": list(self._grad_norms), "row": list(self.row)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what :meth:`state` gave; an empty mapping forgets everything."""
        for window, key in ((self._losses, "losses"), (self._grad_norms, "grad_norms")):
            window.clear()
            window.extend(map(float, state.get(key, ())))
        self.row = list(map(int, state.get("row", ())))

    def _limit(self, values: Sequence[float], *, least_std: float) -> float:
        mean = math.fsum(values) / len(values)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        return mean + self._config.spike_sigma * max(std, least_std)

    def _where_from(self) -> str:
        config = self._config
        return (
            f", {config.spike_sigma:g} standard deviations over the mean of the last {config.spike_window_steps} steps"
        )


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-12))
