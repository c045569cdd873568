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
    problems = [problem for rule in VALUE_RULES for problem in rule(config)]
    if not problems:
        problems = [problem for rule in FIT_RULES for problem in rule(config, world_size)]
    if problems:
        raise ConfigError("\n".join(problems))
