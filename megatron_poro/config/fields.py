"""The schema as data: every key with its type, default and documentation, read from the dataclasses and their source.

Python drops the string under a dataclass field; here it is read back from the source file, so that the text a reader
of the schema sees is also what ``docs/configuration.md`` and the error messages say.
"""

import ast
import dataclasses
import inspect
import itertools
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, Union

from omegaconf import MISSING

from megatron_poro.config.run import TrainConfig

REQUIRED = MISSING
"""Default of a field that the user must give."""


@dataclass(frozen=True)
class ValueType:
    """What one key may hold.

    Attributes:
        kind: ``int``, ``float``, ``bool``, ``str``, an ``Enum`` class or a schema class.
        is_count: an ``int`` that may be written ``10B``.
        is_list: a list of ``kind``.
        is_optional: ``null`` is allowed.
    """

    kind: type
    is_count: bool = False
    is_list: bool = False
    is_optional: bool = False

    @property
    def is_section(self) -> bool:
        """Whether the value is a mapping with keys of its own."""
        return dataclasses.is_dataclass(self.kind)


@dataclass(frozen=True)
class SchemaField:
    """One key of a schema class; ``default`` is ``REQUIRED`` where there is none."""

    name: str
    type: ValueType
    default: Any
    documentation: str


def schema_fields(schema: type) -> tuple[SchemaField, ...]:
    """The fields of a schema class in the order they are written.

    Raises:
        TypeError: if a field has a type that a config cannot hold.
    """
    hints = typing.get_type_hints(schema)
    texts = _documentation(schema)
    return tuple(
        SchemaField(
            name=field.name,
            type=_value_type(hints[field.name], is_count=bool(field.metadata.get("count"))),
            default=_default(field),
            documentation=texts.get(field.name, ""),
        )
        for field in dataclasses.fields(schema)
    )


def walk(schema: type = TrainConfig, prefix: str = "") -> Iterator[tuple[str, SchemaField]]:
    """Every key of a schema, sections before what they hold; an element of a list is written ``data.train[]``."""
    for field in schema_fields(schema):
        key = f"{prefix}{field.name}"
        yield key, field
        if field.type.is_section:
            yield from walk(field.type.kind, f"{key}[]." if field.type.is_list else f"{key}.")


def plain(config: Any) -> Any:
    """A schema object as nested dicts and lists of plain values: what YAML can hold."""
    if dataclasses.is_dataclass(config):
        return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, list):
        return [plain(element) for element in config]
    return config.value if isinstance(config, Enum) else config


def first_paragraph(schema: type) -> str:
    """What a schema class says of itself, on one line."""
    return " ".join((inspect.getdoc(schema) or "").split("\n\n")[0].split())


def _value_type(hint: Any, *, is_count: bool) -> ValueType:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) == 1 and len(arguments) == 2:
            return dataclasses.replace(_value_type(inner[0], is_count=is_count), is_optional=True)
    elif origin is list:
        return dataclasses.replace(_value_type(arguments[0], is_count=is_count), is_list=True)
    elif isinstance(hint, type):
        return ValueType(hint, is_count=is_count)
    raise TypeError(f"a config field cannot be {hint}")


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED


def _documentation(schema: type) -> dict[str, str]:
    """The string literal under each field of a class, on one line."""
    body = _class_bodies(inspect.getmodule(schema))[schema.__name__]
    texts = {}
    for statement, following in itertools.pairwise(body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


@cache
def _class_bodies(module: types.ModuleType) -> dict[str, list[ast.stmt]]:
    tree = ast.parse(inspect.getsource(module))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
