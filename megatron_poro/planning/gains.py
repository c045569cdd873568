"""What each difference between two layouts of a run gains, by itself and behind the ones before it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import AttentionBackend, TrainConfig
from megatron_poro.config.validate import validate
from megatron_poro.errors import PoroError
from megatron_poro.planning.forecast import Forecast, forecast
from megatron_poro.planning.recomputing import fewest_blocks, recompute_words, with_recompute

Change = Callable[[TrainConfig], TrainConfig]


class Gain(NamedTuple):
    """One change.

    Attributes:
        words: the settings, as one types them.
        alone: the run with this change only; ``None`` where it cannot be.
        together: with those before it too.
    """

    words: str
    alone: Forecast | None
    together: Forecast | None


def itemised(
    own: TrainConfig, best: TrainConfig, hardware: HardwareConfig, *, world_size: int, backend: AttentionBackend
) -> list[Gain]:
    """The differences of two layouts, one after another.

    What is recomputed comes first, for all blocks; then the schedule of the pipeline, the cut of the sequence, the grid
    with its microbatches, and how layers are dealt to stages. Last, only as many blocks are recomputed as it takes to
    fit: alone, those of the layout where it starts.

    Args:
        own: where to start; its ``parallel.data`` is a number.
        best: where to end; of its settings those in which candidates of a search differ count.
        hardware: the machine.
        world_size: devices.
        backend: the attention kernel that will run.
    """

    def planned(config: TrainConfig) -> Forecast | None:
        try:
            validate(config, world_size=world_size)
            return forecast(config, hardware, world_size=world_size, backend=backend)
        except PoroError:
            return None

    def with_fewest_blocks(config: TrainConfig) -> TrainConfig:
        return fewest_blocks(config, hardware, world_size=world_size, backend=backend) or config

    found, together = [], own
    changes = _changes(own, best)
    if best.engine.recompute_blocks is not None:
        changes.append((recompute_words(best), with_fewest_blocks))
    for words, change in changes:
        together = change(together)
        found.append(Gain(words, planned(change(own)), planned(together)))
    return found


def _changes(own: TrainConfig, best: TrainConfig) -> list[tuple[str, Change]]:
    """Settings that differ, and what sets them in any config."""
    groups: list[list[tuple[str, str]]] = [
        [("engine", "pipeline_schedule")],
        [("parallel", "sequence")],
        [("parallel", key) for key in ("tensor", "pipeline", "data")] + [("engine", "microbatch_samples")],
        [("parallel", "stage_split")],
    ]
    changes = [_settings(own, best, group) for group in groups]
    again = best.engine.recompute
    if again is not own.engine.recompute or own.engine.recompute_blocks is not None:
        changes.insert(0, (f"engine.recompute={again.value}", lambda config: with_recompute(config, again)))
    return [(words, change) for words, change in changes if words]


def _settings(own: TrainConfig, best: TrainConfig, keys: list[tuple[str, str]]) -> tuple[str, Change]:
    values = {(section, key): getattr(getattr(best, section), key) for section, key in keys}
    differing = {place: value for place, value in values.items() if value != getattr(getattr(own, place[0]), place[1])}

    def change(config: TrainConfig) -> TrainConfig:
        for (section, key), value in differing.items():
            part = dataclasses.replace(getattr(config, section), **{key: value})
            config = dataclasses.replace(config, **{section: part})
        return config

    return " ".join(f"{section}.{key}={_typed(value)}" for (section, key), value in differing.items()), change


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(getattr(value, "value", value))
