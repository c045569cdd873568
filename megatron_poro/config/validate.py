"""Whether a config can be run, asked before anything is built: no torch, no files, no processes."""

from megatron_poro.config.fit_rules import FIT_RULES
from megatron_poro.config.run import TrainConfig
from megatron_poro.config.value_rules import VALUE_RULES
from megatron_poro.errors import ConfigError


def validate(config: TrainConfig, *, world_size: int | None = None) -> None:
    """Refuses a config whose values are out of range or contradict each other.

    Args:
        config: a loaded config.
        world_size: number of processes of this run; ``None`` where it is not known yet, which leaves out what depends
            on it.

    Raises:
        ConfigError: one line per problem. What values are together is only looked at once each is right by itself.
    """
    validate_values(config)
    _refuse([problem for rule in FIT_RULES for problem in rule(config, world_size)])


def validate_values(config: TrainConfig) -> None:
    """Refuses a config whose values are out of range, each by itself; whether they fit together is not asked.

    Raises:
        ConfigError: one line per problem.
    """
    _refuse([problem for rule in VALUE_RULES for problem in rule(config)])


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))
