"""What a config is asked before anything starts, without torch: all that can be told from its values."""

from megatron_poro.config.run import TrainConfig
from megatron_poro.config.validate import validate
from megatron_poro.planning.layers import stage_layers


def check_config(config: TrainConfig, *, world_size: int | None = None) -> None:
    """Refuses a config that no run could be built from.

    Args:
        config: a loaded config.
        world_size: number of processes of the run; ``None`` where it is not known yet.

    Raises:
        ConfigError: from the rules on values (:func:`~megatron_poro.config.validate.validate`), or where a pipeline
            rank has fewer blocks than ``engine.recompute_blocks`` names for it: that is known once stages are cut.
    """
    validate(config, world_size=world_size)
    stage_layers(config)
