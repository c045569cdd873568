"""Tells Hydra which keys exist.

What is registered is a *skeleton* of each schema class: the same keys and defaults, but every value may be anything.
Hydra then refuses an unknown key while it composes, and :mod:`megatron_poro.config.typed` alone decides what a value
may be. OmegaConf's own typing is not used because it cannot read ``10B``, wants the upper-case *name* of an enum
member, and reports a wrong value inside a list without the key of the list.
"""

import dataclasses
from enum import Enum
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore

from megatron_poro.config.cluster import ClusterConfig, SubmitConfig
from megatron_poro.config.fields import SchemaField, schema_fields
from megatron_poro.config.hardware import HardwareConfig, PlanConfig
from megatron_poro.config.model import MODEL_SCHEMAS
from megatron_poro.config.run import TrainConfig


def register_schemas() -> None:
    """Makes ``train_schema``, ``model/<family>_schema`` and the like known to Hydra, for files to start from."""
    store = ConfigStore.instance()
    store.store("train_schema", _skeleton(TrainConfig), provider="megatron_poro")
    for family, schema in MODEL_SCHEMAS.items():
        store.store(f"{family}_schema", _skeleton(schema), group="model", provider="megatron_poro")
    store.store("plan_schema", _skeleton(PlanConfig), provider="megatron_poro")
    store.store("hardware_schema", _skeleton(HardwareConfig), group="hardware", provider="megatron_poro")
    store.store("submit_schema", _skeleton(SubmitConfig), provider="megatron_poro")
    store.store("cluster_schema", _skeleton(ClusterConfig), group="cluster", provider="megatron_poro")


@cache  # one class per schema: OmegaConf compares a section's type with its default's
def _skeleton(schema: type) -> type:
    """A dataclass with the keys and defaults of ``schema`` and untyped values; sections stay sections."""
    return dataclasses.make_dataclass(
        schema.__name__,
        [(field.name, _skeleton_type(field), _skeleton_default(field)) for field in schema_fields(schema)],
        kw_only=True,
    )


def _skeleton_type(field: SchemaField) -> Any:
    if field.type.is_list:
        return Any if field.type.is_optional else list[Any]
    return _skeleton(field.type.kind) if field.type.is_section else Any


def _skeleton_default(field: SchemaField) -> Any:
    default = field.default
    if field.type.is_section and not field.type.is_list and dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=_skeleton(field.type.kind))
    if isinstance(default, list):
        return dataclasses.field(default_factory=list)
    return dataclasses.field(default=default.value if isinstance(default, Enum) else default)
