"""What a guard is, and how it is switched off: its function gets the code of an edited copy of its source.

Only the code of the function changes, not the function itself, so whoever has imported it meets the edited one, and so
do processes that are forked afterwards. An entry that no longer fits the source is an error that names it.
"""

import ast
import functools
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any


class StaleEntryError(Exception):
    """An entry does not fit the source any more."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """One guard.

    Attributes:
        name: how it is called here.
        keeps: what it sees to, one sentence without a full stop.
        where: ``module:function`` or ``module:Class.method`` that holds it.
        off: what of the function's source is replaced; empty for its whole body.
        instead: what takes its place.
        missed_by: tests that must fail without it, as ids below ``tests/``; of one that has parameters, with some.
        error: name of the exception that may end a test in the place of an assertion: what goes wrong unguarded.
    """

    name: str
    keeps: str
    where: str
    off: str = ""
    instead: str = "return None"
    missed_by: tuple[str, ...]
    error: str = ""

    def __str__(self) -> str:
        how = f"`{_one_line(self.off)}` becomes `{_one_line(self.instead)}`" if self.off else f"`{self.instead}`"
        return f"{self.where.removeprefix('megatron_poro.')}: {how}"


@contextmanager
def switched_off(guard: Guard) -> Iterator[None]:
    """Runs a block without a guard.

    Raises:
        StaleEntryError: if the entry does not fit the source.
    """
    function = function_of(guard)
    before = function.__code__
    function.__code__ = code_without(guard)
    try:
        yield
    finally:
        function.__code__ = before


def switch_off(guard: Guard) -> None:
    """Takes a guard away from this process for good.

    Raises:
        StaleEntryError: if the entry does not fit the source.
    """
    function_of(guard).__code__ = code_without(guard)


def function_of(guard: Guard) -> FunctionType:
    """The function that holds a guard, without what is wrapped around it.

    Raises:
        StaleEntryError: if there is no such function.
    """
    module_name, _, path = guard.where.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = inspect.getattr_static(found, part)
    except (ImportError, AttributeError) as error:
        raise StaleEntryError(f"guard {guard.name!r}: {guard.where} does not exist ({error}).") from error
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, functools.cached_property):
        found = found.func
    elif isinstance(found, staticmethod | classmethod):
        found = found.__func__
    found = inspect.unwrap(found)
    if not isinstance(found, FunctionType):
        raise StaleEntryError(f"guard {guard.name!r}: {guard.where} is no function.")
    return found


def code_without(guard: Guard) -> CodeType:
    """The code of the guard's function with the guard taken out.

    Raises:
        StaleEntryError: if what is to be replaced is not there once, or what remains is no function.
    """
    function = function_of(guard)
    lines, first_line = inspect.getsourcelines(function)
    source = textwrap.dedent("".join(lines))
    try:
        node = _edited(guard, source)
        code = _compiled(node, function, first_line)
    except SyntaxError as error:
        raise StaleEntryError(f"guard {guard.name!r}: without it {guard.where} does not compile ({error}).") from error
    if code.co_freevars != function.__code__.co_freevars:
        raise StaleEntryError(
            f"guard {guard.name!r}: without it {guard.where} takes {code.co_freevars} from around it, not "
            f"{function.__code__.co_freevars}."
        )
    if (code.co_flags ^ function.__code__.co_flags) & inspect.CO_GENERATOR:
        raise StaleEntryError(
            f"guard {guard.name!r}: of {guard.where} and what is left of it one is a generator and the other is not."
        )
    return code


def _edited(guard: Guard, source: str) -> ast.FunctionDef:
    """The function without its guard, as a tree."""
    if guard.off:
        times = source.count(guard.off)
        if times != 1:
            raise StaleEntryError(f"guard {guard.name!r}: {guard.off!r} is {times} times in {guard.where}, not once.")
        source = source.replace(guard.off, guard.instead)
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef), f"{guard.where} is not a plain function"
    if not guard.off:
        node.body = ast.parse(guard.instead).body
    node.decorator_list = []
    return node


def _compiled(node: ast.FunctionDef, function: FunctionType, first_line: int) -> CodeType:
    """The code of a function that sees the same names around it as the one it replaces."""
    ast.increment_lineno(node, first_line - 1)
    around = ast.parse(f"def around({', '.join(function.__code__.co_freevars)}): pass").body[0]
    assert isinstance(around, ast.FunctionDef)
    around.body = [node]
    module = compile(ast.fix_missing_locations(ast.Module([around], [])), function.__code__.co_filename, "exec")
    return _inner(_inner(module, "around"), node.name)


def _inner(code: CodeType, name: str) -> CodeType:
    return next(one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == name)


def _one_line(text: str) -> str:
    return " ".join(text.split())
