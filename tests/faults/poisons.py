"""Values that a broken device, an overflow or a bad batch brings into a step, put there on purpose."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from megatron_poro.engine.engine import FragmentKind
from megatron_poro.engine.local import LocalEngine
from megatron_poro.engine.objective import LossParts
from megatron_poro.engine.pipeline_engine import PipelineEngine
from megatron_poro.models.bloom import BloomBlock
from megatron_poro.parallel.shards import shard_of
from megatron_poro.train.next_token import NextToken


class Place(str, Enum):
    """Where a value is poisoned."""

    ACTIVATION = "activation"
    """What a block hands on, in one forward pass of a step."""

    LOSS = "loss"
    """The loss of every microbatch of a step; reaches processes that compute it."""

    GRADIENT = "gradient"
    """The reduced gradient of one parameter, on one process, just before it is judged."""

    WEIGHT = "weight"
    """One element of a parameter, from the beginning of a step on, for ever."""

    MOMENT = "moment"
    """One element of the optimizer's first moment, from the beginning of a step on."""


TRANSIENT = (Place.ACTIVATION, Place.LOSS, Place.GRADIENT)
"""Gone after the step."""

SPIKE = 1e4


@dataclass(frozen=True)
class Poison:
    """One fault.

    Attributes:
        place: where.
        factor: what values are multiplied by: NaN, infinity, or ``SPIKE``.
        steps: the steps it is there in; of a place that keeps it, the first of them only.
        batch: samples of a step.
    """

    place: Place
    factor: float
    steps: tuple[int, ...]
    batch: int

    @property
    def name(self) -> str:
        """For counts."""
        return f"{'spike' if math.isfinite(self.factor) else self.factor} in {self.place.value}"

    def inject(self, patch: Callable[[Any, str, Any], None] = setattr) -> None:
        """Puts the fault into every run of this process from now on.

        Args:
            patch: sets an attribute, as ``setattr``.
        """
        _Injected(self, patch)


class _Injected:
    """The patches of one fault, and which step they are in."""

    def __init__(self, fault: Poison, patch: Callable[[Any, str, Any], None]) -> None:
        self._fault, self._step, self._calls = fault, 0, 0
        for engine in (LocalEngine, PipelineEngine):
            patch(engine, "train_step", self._around_step(engine.train_step))
        if fault.place is Place.ACTIVATION:
            patch(BloomBlock, "forward", self._bad_activation(BloomBlock.forward))
        elif fault.place is Place.LOSS:
            patch(NextToken, "loss", self._bad_loss(NextToken.loss))
        elif fault.place is Place.GRADIENT:
            patch(PipelineEngine, "_take_step", self._bad_gradient(PipelineEngine._take_step))
            patch(LocalEngine, "accumulate", self._bad_local_gradient(LocalEngine.accumulate))

    @property
    def _is_due(self) -> bool:
        return self._step in self._fault.steps

    def _around_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(engine: Any, microbatches: Any, **options: Any) -> Any:
            self._step, self._calls = options["consumed_samples"] // self._fault.batch + 1, 0
            if self._step == self._fault.steps[0]:
                self._spoil(engine)
            result = original(engine, microbatches, **options)
            self._step = 0
            return result

        return train_step

    def _spoil(self, engine: Any) -> None:
        """A value of the engine's own storage."""
        if self._fault.place is Place.WEIGHT:
            parameters = engine.model.parameters() if isinstance(engine, LocalEngine) else engine._parameters
            with torch.no_grad():
                next(iter(parameters)).view(-1)[0] *= self._fault.factor
        elif self._fault.place is Place.MOMENT:
            moment = next(f for f in engine.fragments() if f.kind is FragmentKind.EXP_AVG)
            moment.flat[0] = self._fault.factor

    def _bad_activation(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(block: BloomBlock, hidden: Tensor) -> Tensor:
            self._calls += 1
            out = original(block, hidden)
            return out * self._fault.factor if self._is_due and self._calls == 1 else out

        return forward

    def _bad_loss(self, original: Callable[..., LossParts]) -> Callable[..., LossParts]:
        def loss(objective: NextToken, logits: Tensor, targets: Any) -> LossParts:
            parts = original(objective, logits, targets)
            return LossParts(*(part * self._fault.factor for part in parts)) if self._is_due else parts

        return loss

    def _bad_gradient(self, original: Callable[..., None]) -> Callable[..., None]:
        def take_step(engine: PipelineEngine) -> None:
            if self._is_due:
                for parameter, gradient in engine._gradient_sums.reduced():
                    if engine._holders.counts_in_norm(parameter) and shard_of(parameter).dim is not None:
                        gradient *= self._fault.factor
                        break
            original(engine)

        return take_step

    def _bad_local_gradient(self, original: Callable[..., None]) -> Callable[..., None]:
        def accumulate(engine: LocalEngine, microbatches: Any) -> None:
            original(engine, microbatches)
            if self._is_due:
                next(iter(engine.gradients().values())).mul_(self._fault.factor)

        return accumulate
