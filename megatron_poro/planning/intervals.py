"""How often to save a run, what failures cost it, and how large the files are that it writes."""

import math
from dataclasses import dataclass

from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import TrainConfig
from megatron_poro.planning.forecast import Forecast
from megatron_poro.planning.layers import total_parameters

_SHORTEST_SAVE = 1e-3
"""Seconds that a save counts at least: saves that cost nothing would be made without end."""


@dataclass(frozen=True)
class Interval:
    """How often to save.

    Attributes:
        steps: steps between two checkpoints.
        lost_share: share of all time that goes to saving, to repeating what a failure undid, and to starting again.
        failures: failures to expect in the run.
    """

    steps: int
    lost_share: float
    failures: float


def save_interval(
    found: Forecast,
    hardware: HardwareConfig,
    *,
    blocked_seconds: float,
    restart_seconds: float,
    every_steps: int | None = None,
) -> Interval:
    """The interval between checkpoints that loses least, or what a given one loses.

    Args:
        found: the run.
        hardware: how often its nodes fail; without failures the best interval is the whole run.
        blocked_seconds: how long training waits for one save.
        restart_seconds: from a failure to the first step of the next job.
        every_steps: judge this interval instead of looking for the best.

    Source: Young 1974, "A first order approximation to the optimum checkpoint interval".
    """
    nodes = math.ceil(found.world_size / hardware.devices_per_node)
    failures_per_second = nodes * hardware.node_failures_per_year / (365 * 86_400)
    step_seconds = found.time.total
    best = found.steps  # nothing to lose: one save, at the end
    if failures_per_second > 0:
        seconds = math.sqrt(2 * max(blocked_seconds, _SHORTEST_SAVE) / failures_per_second)
        best = min(found.steps, max(1, round(seconds / step_seconds)))
    steps = best if every_steps is None else every_steps
    interval = steps * step_seconds
    lost = blocked_seconds / interval + (interval / 2 + restart_seconds) * failures_per_second
    return Interval(steps, lost, found.steps * step_seconds * failures_per_second)


def checkpoint_bytes(config: TrainConfig) -> int:
    """Masters and two moments in fp32."""
    return 12 * total_parameters(config.model)


def export_bytes(config: TrainConfig) -> int:
    """A Hugging Face model in bf16."""
    return 2 * total_parameters(config.model)
