"""Configs to plan."""

from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.load import load_config, load_plan
from megatron_poro.config.run import TrainConfig


def poro() -> TrainConfig:
    """Poro 34B as it was trained."""
    return load_config(["experiment=poro_34b"])


def small(*, num_layers: int = 4, tensor: int = 1, pipeline: int = 1, data: int = 1) -> TrainConfig:
    """A model of a few thousand parameters."""
    config = load_config(["experiment=smoke_cpu"])
    config.model.num_layers, config.model.hidden_size, config.model.num_heads = num_layers, 96, 12
    config.model.vocab_size = 1020
    config.parallel.tensor, config.parallel.pipeline, config.parallel.data = tensor, pipeline, data
    return config


def lumi_g() -> HardwareConfig:
    """The machine of Poro 34B."""
    return load_plan(["hardware=lumi_g"]).hardware
