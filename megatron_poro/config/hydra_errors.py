"""What Hydra and OmegaConf refuse, said in one sentence: the full key or group, its value, and what to do.

Their own messages run over several lines, speak of classes and structs, and sometimes leave out the key.
"""

import re
from collections.abc import Iterator

import yaml
from hydra.errors import (
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigIndexError,
    ConfigKeyError,
    ConfigTypeError,
    InterpolationKeyError,
    InterpolationResolutionError,
    ValidationError,
)

from megatron_poro.config.typed import enumerate_words, nearest, unknown_key
from megatron_poro.errors import ConfigError


def config_error(error: BaseException) -> ConfigError:
    """The sentence for an error raised while a config was composed or resolved."""
    for cause in _chain(error):
        sentence = _sentence(cause)
        if sentence is not None:
            return ConfigError(f"In {origin}: {sentence}" if (origin := _origin(error)) else sentence)
    return ConfigError(f"The config cannot be composed ({_first_line(error)}); check the overrides one by one.")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _origin(error: BaseException) -> str | None:
    """The config file in which Hydra found the mistake, where it says so."""
    match = re.match(r"In '([^']+)': \w+ raised while composing config", str(error))
    return f"{match[1]}.yaml" if match else None


def _sentence(error: BaseException) -> str | None:
    """One sentence for the errors we know by type; ``None`` to look at the cause."""
    match error:
        case OverrideParseException():
            return (
                f"{error.override!r} is not an override; write key=value, such as parallel.tensor=2, and quote what "
                "has spaces, commas or brackets: run.name='\"a b\"'."
            )
        case MissingConfigException():
            return _missing_file(error)
        case ConfigAttributeError() | ConfigKeyError():
            return unknown_key(str(error.full_key))
        case ConfigTypeError() if "deletion" in str(error):
            return f"~{error.full_key}: a key cannot be taken out of the config; give it another value."
        case ValidationError() | ConfigTypeError() if "ListConfig" in str(error):
            return f"{error.full_key} is a list; write {error.full_key}=[...]."
        case ValidationError():
            key = error.full_key
            return f"{key} is a section and has no value of its own; set its keys, {key}.<key>=value."
        case InterpolationKeyError():
            return f"{error.full_key} refers to a key that does not exist ({_first_line(error)})."
        case InterpolationResolutionError():
            return f"{error.full_key} cannot be resolved ({_first_line(error)})."
        case yaml.MarkedYAMLError(problem=str(problem), problem_mark=mark) if mark is not None:
            return f"{mark.name}, line {mark.line + 1}: {problem}; correct the YAML."
        case ConfigCompositionException():
            return _composition(error)
        case ValueError() if "Config group override" in str(error):
            return "A config group takes the name of one of its files, such as schedule=cosine or model=poro_34b."
        case _:
            return None


def _missing_file(error: MissingConfigException) -> str:
    """An unknown experiment, another unknown file of a group, or an unknown primary config."""
    name = str(error.missing_cfg_file)
    group, _, choice = name.rpartition("/")
    options = [option for option in error.options or () if not option.endswith("_schema")]
    if not group or not options:
        return f"there is no config {name}.yaml, neither packaged nor in a --config-dir; the packaged primary is train."
    close = nearest(choice, options)
    use = f"did you mean {close}? Use" if close else "use"
    return f"{group}={choice}: there is no {name}.yaml; {use} {enumerate_words(options)}."


def _composition(error: ConfigCompositionException) -> str | None:
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'\. No match in the defaults list", text):
        return f"{match[1]} is not a config group that can be overridden; the groups are the folders of configs/."
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", text):
        return f"{match[1]} gives several values, and a run takes one; write [a,b] for a list, or quote the text."
    if match := re.search(r"Multiple values for (\S+)\.", text) or re.search(r"(\S+) appears more than once", text):
        return f"{match[1]} is chosen twice; write {match[1]}=... once, without a plus sign."
    if (match := re.search(r"Error merging override (.*)", text)) and isinstance(error.__cause__, ConfigIndexError):
        return f"{match[1]}: the list is not that long ({_first_line(error.__cause__)})."
    return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return re.sub(r"^\w+ (raised )?while resolving interpolation: ", "", text).strip('"')
