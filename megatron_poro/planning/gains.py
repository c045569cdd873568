"""What each difference between two layouts of a run gains, by itself and behind the ones before it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import AttentionBackend, TrainConfig
from megatron_poro.config.validate import validate
from megatron_poro.errors import PoroError
from megatron_poro.planning.forecast import Forecast, forecast
from megatron_poro.planning.recomputing import fewest_blocks, with_recompute, with_waiting

Change = Callable[[TrainConfig], TrainConfig | None]
"""Makes another config of one; ``None`` where it cannot."""

_KEYS = (
    "engine.recompute",
    "engine.recompute_blocks",
    "engine.pipeline_schedule",
    "engine.deferred_weight_gradients",
    "parallel.sequence",
    "parallel.tensor",
    "parallel.pipeline",
    "parallel.data",
    "engine.microbatch_samples",
    "parallel.stage_split",
)
"""In which candidates of a search differ."""

_GROUPS = (
    ("engine.pipeline_schedule",),
    ("parallel.sequence",),
    ("parallel.tensor", "parallel.pipeline", "parallel.data", "engine.microbatch_samples"),
    ("engine.deferred_weight_gradients",),
    ("parallel.stage_split",),
)
"""Keys that change together, because the number of devices and the batch stay what they are."""


class Changed(NamedTuple):
    """A run with some of its settings changed.

    Attributes:
        words: the settings that differ from before, as one types them.
        found: what to expect of it.
    """

    words: str
    found: Forecast


class Gain(NamedTuple):
    """One change.

    Attributes:
        alone: the run with this change only; ``None`` where it cannot be.
        together: with those before it too, its words only of what it adds to them.
    """

    alone: Changed | None
    together: Changed | None


def itemised(
    own: TrainConfig, best: TrainConfig, hardware: HardwareConfig, *, world_size: int, backend: AttentionBackend
) -> list[Gain]:
    """The differences of two layouts, one after another.

    What is recomputed comes first, for all blocks; then the schedule of the pipeline, the cut of the sequence, the grid
    with its microbatches, weight gradients that wait, and how layers are dealt to stages. Last, only as many blocks are
    recomputed as it takes to fit: alone, of the layout where it starts and in its way of recomputing.

    Args:
        own: where to start; its ``parallel.data`` is a number.
        best: where to end; of its settings those in which candidates of a search differ count.
        hardware: the machine.
        world_size: devices.
        backend: the attention kernel that will run.
    """

    def changed(before: TrainConfig, after: TrainConfig | None) -> Changed | None:
        if after is None:
            return None
        try:
            validate(after, world_size=world_size)
            found = forecast(after, hardware, world_size=world_size, backend=backend)
        except PoroError:
            return None
        return Changed(_differences(before, after), found)

    def with_fewest_blocks(config: TrainConfig) -> TrainConfig | None:
        return fewest_blocks(config, hardware, world_size=world_size, backend=backend)

    found, together = [], own
    changes = _changes(own, best)
    if best.engine.recompute_blocks is not None:
        changes.append(with_fewest_blocks)
    for change in changes:
        after = change(together)
        found.append(Gain(changed(own, change(own)), changed(together, after)))
        together = after or together
    return found


def _changes(own: TrainConfig, best: TrainConfig) -> list[Change]:
    """What makes the settings of one those of the other, but for how many blocks are recomputed."""
    again = best.engine.recompute
    changes: list[Change] = [_setting(best, group) for group in _GROUPS if _differ(own, best, group)]
    if again is not own.engine.recompute or own.engine.recompute_blocks is not None:
        changes.insert(0, lambda config: with_recompute(config, again))
    return changes


def _setting(best: TrainConfig, keys: tuple[str, ...]) -> Change:
    def change(config: TrainConfig) -> TrainConfig:
        for key in keys:
            section, _, name = key.partition(".")
            part = dataclasses.replace(getattr(config, section), **{name: _value(best, key)})
            config = dataclasses.replace(config, **{section: part})
        return with_waiting(config, config.engine.deferred_weight_gradients)

    return change


def _differ(one: TrainConfig, other: TrainConfig, keys: tuple[str, ...]) -> bool:
    return any(_value(one, key) != _value(other, key) for key in keys)


def _differences(before: TrainConfig, after: TrainConfig) -> str:
    """The settings of a config that another one does not have, as one types them.

    How many blocks are recomputed has a meaning only with the way, so the way is typed with it.
    """
    keys = [key for key in _KEYS if _differ(before, after, (key,))]
    if "engine.recompute_blocks" in keys and "engine.recompute" not in keys:
        keys.insert(0, "engine.recompute")
    return " ".join(f"{key}={_typed(_value(after, key))}" for key in keys)


def _value(config: TrainConfig, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _typed(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return str(value).replace(" ", "")
    return str(value).lower() if isinstance(value, bool) else str(getattr(value, "value", value))
