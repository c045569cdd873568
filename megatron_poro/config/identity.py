"""What makes a run this run: the values that must not change between a checkpoint and its continuation."""

import hashlib
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from omegaconf import OmegaConf

from megatron_poro.config.fields import plain
from megatron_poro.config.run import TrainConfig

ABSENT = "(absent)"
"""Stands for the value of a key that one of two configs does not have."""


@dataclass(frozen=True)
class Difference:
    """A key whose value differs between two configs."""

    key: str
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"{self.key}: {_text(self.left)} -> {_text(self.right)}"


def identity(config: TrainConfig) -> dict[str, Any]:
    """The values that define the model, its initial weights and the order of the data, by dotted key.

    Folders are left out, so that data may move: a source is its name, its weight, its file name and what part
    of it is read. So are the layout
    and the engine, which change how a step is computed and not what, and the optimizer and its rates, which may be
    changed on purpose on the way.
    """
    values = {f"model.{key}": value for key, value in flatten(config.model).items()}
    values["run.seed"] = config.run.seed
    values["data.sequence_length"] = config.data.sequence_length
    values["data.shuffle_seed"] = config.data.shuffle_seed
    for index, source in enumerate(config.data.train):
        values[f"data.train[{index}].name"] = source.name
        values[f"data.train[{index}].file"] = PurePath(source.path).name
        values[f"data.train[{index}].weight"] = source.weight
        if (source.start, source.end) != (0.0, 1.0):  # whole datasets keep the identity they had before parts existed
            values[f"data.train[{index}].documents"] = f"{source.start}:{source.end}"
    # The number of samples decides over how many epochs each source is shuffled.
    values["schedule.total_tokens"] = config.schedule.total_tokens
    values["schedule.global_batch_samples"] = config.schedule.global_batch_samples
    return values


def fingerprint(config: TrainConfig) -> str:
    """SHA-256 of the identity as YAML, 64 hexadecimal digits; the same on every machine."""
    return hashlib.sha256(OmegaConf.to_yaml(OmegaConf.create(identity(config)), sort_keys=True).encode()).hexdigest()


def differences(left: TrainConfig, right: TrainConfig) -> list[Difference]:
    """Every key whose value differs, in the order of the schema."""
    return _compare(flatten(left), flatten(right))


def identity_differences(left: TrainConfig, right: TrainConfig) -> list[Difference]:
    """The differences that make two configs different runs; empty if and only if the fingerprints agree."""
    return _compare(identity(left), identity(right))


def flatten(config: Any) -> dict[str, Any]:
    """A config as dotted keys and plain values: ``parallel.tensor``, ``data.train[0].name``."""
    return flatten_values(plain(config))


def flatten_values(values: Any) -> dict[str, Any]:
    """Nested mappings and lists as dotted keys."""
    return dict(_leaves(values, ""))


def _leaves(value: Any, key: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        prefix = f"{key}." if key else ""
        return [leaf for name, inner in value.items() for leaf in _leaves(inner, f"{prefix}{name}")]
    if isinstance(value, list):
        return [leaf for index, inner in enumerate(value) for leaf in _leaves(inner, f"{key}[{index}]")]
    return [(key, value)]


def _compare(left: dict[str, Any], right: dict[str, Any]) -> list[Difference]:
    keys = [*left, *(key for key in right if key not in left)]
    pairs = [Difference(key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in keys]
    return [pair for pair in pairs if pair.left != pair.right]


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
