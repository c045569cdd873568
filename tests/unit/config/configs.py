"""Configs for the tests of this folder."""

from dataclasses import fields
from functools import cache
from typing import Any

from megatron_poro.config.load import load_config
from megatron_poro.config.run import TrainConfig

SMOKE = "experiment=smoke_cpu"
PORO = "experiment=poro_34b"


@cache
def _loaded(*overrides: str) -> TrainConfig:
    return load_config(overrides)


def changed(experiment: str, **values: Any) -> TrainConfig:
    """An experiment with some values replaced: ``changed(SMOKE, parallel__tensor=3)``. No value is checked."""
    config: TrainConfig = _copy(_loaded(experiment))
    for key, value in values.items():
        *path, name = key.split("__")
        section: Any = config
        for step in path:
            section = section[int(step)] if step.isdigit() else getattr(section, step)
        assert hasattr(section, name), f"there is no {key}"
        setattr(section, name, value)
    return config


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [_copy(element) for element in value]
    if hasattr(value, "__dataclass_fields__"):
        return type(value)(**{field.name: _copy(getattr(value, field.name)) for field in fields(value)})
    return value
