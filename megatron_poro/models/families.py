"""Model families by name: a dictionary, so that adding one is adding a line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_poro.config.model import BloomConfig
from megatron_poro.errors import ConfigError
from megatron_poro.models.bloom import bloom_plan
from megatron_poro.models.plan import LayerPlan


@dataclass(frozen=True)
class Family:
    """What the rest of the house needs to know of a model family.

    Attributes:
        schema: config dataclass.
        plan: ``plan(model_config, group=..., options=...) -> LayerPlan``.
    """

    schema: type[Any]
    plan: Callable[..., LayerPlan]


FAMILIES = {"bloom": Family(schema=BloomConfig, plan=bloom_plan)}


def family(name: str) -> Family:
    """The family of ``model.family``.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in FAMILIES:
        raise ConfigError(f"model.family={name} is unknown. Use one of: {', '.join(sorted(FAMILIES))}.")
    return FAMILIES[name]
