"""Plain mappings -> schema dataclasses: the one place that decides what a value may be.

Everything that is wrong is reported at once, each with its full key, its value and what would be accepted. Values are
converted only where nothing can be lost: ``10B`` to an ``int`` in a count, ``1`` to ``1.0`` in a number.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, TypeVar

from omegaconf import MISSING

from megatron_poro.config.fields import REQUIRED, SchemaField, ValueType, schema_fields, walk
from megatron_poro.errors import ConfigError
from megatron_poro.units import format_count, parse_count

Schema = TypeVar("Schema")


def typed(schema: type[Schema], values: Mapping[Any, Any]) -> Schema:
    """Builds a schema dataclass from nested mappings and lists; a key that is left out takes its default.

    Raises:
        ConfigError: if a key is unknown or has no value, or a value has the wrong type; one line per problem.
    """
    problems: list[str] = []
    config = _section(schema, values, "", problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def unknown_key(key: str) -> str:
    """The sentence for a key that is not in the schema of a run, with the nearest one that is."""
    return f"{key} is not a config key; {_instead(key)}"


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that is most like a mistyped word, if any is like it."""
    matches = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return matches[0] if matches else None


def enumerate_words(words: Iterable[object], joint: str = "or") -> str:
    """``a, b or c``."""
    *firsts, last = map(str, words)
    return f"{', '.join(firsts)} {joint} {last}" if firsts else last


def _instead(key: str) -> str:
    """What to write instead of an unknown key: the same name in another section, or a sibling with a name like it."""
    section, _, name = key.rpartition(".")
    schema_section = re.sub(r"\[\d+\]|\.\d+$", "[]", section)  # data.train[0] and data.train.0
    known = [known_key.rpartition(".") for known_key, _ in walk()] + [("", "", "experiment")]
    siblings = [other for in_section, _, other in known if in_section == schema_section]
    namesakes = ["".join(parts) for parts in known if parts[2] == name]
    if namesakes:
        return f"did you mean {enumerate_words(namesakes)}?"
    if (close := nearest(name, siblings)) is not None:
        return f"did you mean {section}.{close}?" if section else f"did you mean {close}?"
    if siblings:
        return f"{section or 'the top level'} has {enumerate_words(siblings, 'and')}."
    return "`poro config reference` lists all keys."


def _section(schema: type[Schema], values: Any, key: str, problems: list[str]) -> Schema:
    """Reads one mapping; problems are collected, and the returned object is only used when there are none."""
    if not isinstance(values, Mapping):
        names = ", ".join(field.name for field in schema_fields(schema))
        problems.append(f"{key}={_as_written(values)} is not a section; give its keys one by one ({names}).")
        return schema()
    prefix = f"{key}." if key else ""
    fields = {field.name: field for field in schema_fields(schema)}
    problems += [unknown_key(f"{prefix}{name}") for name in values if name not in fields]
    read = {
        name: _field(field, values[name], f"{prefix}{name}", problems)
        if name in values
        else _absent(field, f"{prefix}{name}", problems)
        for name, field in fields.items()
    }
    return schema(**read)


def _absent(field: SchemaField, key: str, problems: list[str]) -> Any:
    """The default of a key that is not given; a section without a default is read as if it were empty."""
    if field.type.is_section and not field.type.is_list:
        return _section(field.type.kind, {}, key, problems)
    if field.default == REQUIRED:
        return _field(field, MISSING, key, problems)
    return field.default


def _field(field: SchemaField, value: Any, key: str, problems: list[str]) -> Any:
    if value == MISSING:
        problems.append(f"{key} has no value; add {key}=... ({field.documentation.rstrip('.')}).")
        return None
    if value is None and field.type.is_optional:
        return None
    if not field.type.is_list:
        return _element(field.type, value, key, problems)
    if not isinstance(value, list | tuple):
        problems.append(f"{key}={_as_written(value)} is not a list; write [...].")
        return []
    return [_element(field.type, element, f"{key}[{index}]", problems) for index, element in enumerate(value)]


def _element(kind: ValueType, value: Any, key: str, problems: list[str]) -> Any:
    if kind.is_section:
        return _section(kind.kind, value, key, problems)
    try:
        return _scalar(kind, value)
    except ValueError as error:
        problems.append(f"{key}={error}.")
        return None


def _scalar(kind: ValueType, value: Any) -> Any:
    """Converts one value.

    Raises:
        ValueError: if it is of another kind; the text starts with the value.
    """
    if kind.is_count:
        return _count(value)
    if issubclass(kind.kind, Enum):
        return _choice(kind.kind, value)
    reader, expected = _READERS[kind.kind]
    if (converted := reader(value)) is None:
        raise ValueError(f"{_as_written(value)} is not {expected}")
    return converted


def _read_int(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        return int(value)  # what an environment variable or a quoted number gives
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _read_bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _read_text(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # run.name=7
    return value if isinstance(value, str) else None


_READERS: dict[type, tuple[Callable[[Any], Any], str]] = {
    int: (_read_int, "a whole number"),
    float: (_read_float, "a number"),
    bool: (_read_bool, "true or false"),
    str: (_read_text, "a text; put it in quotes if it is meant as one"),
}


def _count(value: Any) -> int:
    if isinstance(value, float) and value.is_integer() and value >= 0:
        raise ValueError(f"{value:g} is a floating-point number and counts are exact; write {format_count(int(value))}")
    return parse_count(value)


def _choice(kind: type[Enum], value: Any) -> Enum:
    if isinstance(value, kind):
        return value
    words = [member.value for member in kind]
    word = {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # YAML reads a bare on as true
    if word in words:
        return kind(word)
    close = nearest(str(value), words)
    raise ValueError(
        f"{_as_written(value)} is not {enumerate_words(words)}" + (f"; the nearest is {close}" if close else "")
    )


def _as_written(value: Any) -> str:
    """A value as it would stand in YAML."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value) if isinstance(value, str | int | float) else repr(value)
