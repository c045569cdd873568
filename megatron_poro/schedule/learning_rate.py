"""The learning rate as a pure function of what has been consumed.

Counted in samples, as Megatron does: a step after ``n`` completed steps runs at the rate of the ``n * batch`` samples
consumed before it, so the first step runs at 0 and changes no weight.

Source: Megatron-DeepSpeed, ``megatron/learning_rates.py``, ``AnnealingLR.get_lr``, and ``megatron/training.py``, which
floors the number of samples of the warm-up and of the decay.
"""

import math
from dataclasses import dataclass

from megatron_poro.config.run import LearningRateKind, ScheduleConfig


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up from 0, then a half cosine or a constant.

    Attributes:
        kind: shape after the warm-up.
        peak: rate at the end of the warm-up.
        minimum: rate at the end of the decay and after it.
        warmup_samples: samples of the warm-up.
        decay_samples: samples at which the decay ends; the warm-up lies inside.
    """

    kind: LearningRateKind
    peak: float
    minimum: float
    warmup_samples: int
    decay_samples: int

    @classmethod
    def of(cls, schedule: ScheduleConfig, *, sequence_length: int) -> "LearningRate":
        """The rate a config asks for; tokens become whole samples, rounded down."""
        decay_tokens = schedule.total_tokens if schedule.decay_tokens is None else schedule.decay_tokens
        return cls(
            kind=schedule.kind,
            peak=schedule.learning_rate,
            minimum=schedule.min_learning_rate,
            warmup_samples=schedule.warmup_tokens // sequence_length,
            decay_samples=decay_tokens // sequence_length,
        )

    def at(self, samples: int) -> float:
        """The rate of a step that starts after so many consumed samples."""
        if self.warmup_samples > 0 and samples <= self.warmup_samples:
            return self.peak * samples / self.warmup_samples
        if self.kind is LearningRateKind.CONSTANT:
            return self.peak
        if samples > self.decay_samples:
            return self.minimum
        # Without a warm-up and with a decay of no samples, sample 0 is the whole decay.
        fraction = (samples - self.warmup_samples) / max(1, self.decay_samples - self.warmup_samples)
        return self.minimum + 0.5 * (1 + math.cos(math.pi * fraction)) * (self.peak - self.minimum)
