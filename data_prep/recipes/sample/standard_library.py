"""English prose and program code from Python's standard library: the one body of text that every installation has.

A module serves one purpose only: its source is code for ``starcoder``, or its docstrings are prose for ``slimpajama``.
The chapters of the language reference that ``help()`` prints are prose too: the long ones stand in for books. So no
text is in two sources, and none of the three can leak into another's validation part.
"""

import ast
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from data_prep.recipes.sample.documents import Document, cut, hash_of, within_budget
from data_prep.recipes.starcoder import code_document
from megatron_poro.errors import DataError

CODE_CHARACTERS = 1_200_000
ARTICLE_CHARACTERS = 1_000_000
DOCUMENT_CHARACTERS = 20_000
"""Longer files and articles are cut."""

SHORTEST_BOOK = 4_500
"""Characters from which a chapter counts as a book."""

SHORTEST_MODULE = 200
SHORTEST_ARTICLE = 400
SHORTEST_DOCSTRING = 40

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_LEFT_OUT = frozenset(
    {
        "__pycache__",
        "_distutils_system_mod.py",
        "distutils",
        "dist-packages",
        "encodings",  # tables of characters
        "ensurepip",
        "idlelib",
        "lib-dynload",
        "lib2to3",
        "pydoc_data",  # the chapters again
        "site-packages",
        "sitecustomize.py",
        "test",
        "tests",
        "tkinter",  # some systems package it apart
        "turtledemo",
        "usercustomize.py",
    }
)
"""Folders and files that are not the library, are no text, or differ from system to system."""


def code_files() -> list[Document]:
    """Sources of some modules, in StarCoder's form; a long file is cut between its top-level definitions."""
    code, _ = _modules(_library())
    documents: list[Document] = []
    for module in code:
        pieces = cut(module.text, separator="\n\n\n", characters=DOCUMENT_CHARACTERS)
        documents += [Document(code_document(piece, module.group), module.group) for piece in pieces]
    return documents


def articles() -> list[Document]:
    """Docstrings of the other modules, one article a module, and the short chapters of the language reference."""
    _, prose = _modules(_library())
    chapters = [Document(text, group) for group, text in _chapters() if len(text) < SHORTEST_BOOK]
    return within_budget([*chapters, *_module_articles(prose)], ARTICLE_CHARACTERS)


def books() -> list[Document]:
    """The long chapters of the language reference, and the licence with its history where it is installed."""
    chapters = [Document(text, group) for group, text in _chapters() if len(text) >= SHORTEST_BOOK]
    licence = _library() / "LICENSE.txt"
    if licence.is_file():
        chapters.append(Document(licence.read_text(encoding="utf-8").strip(), licence.name))
    return chapters


def _module_articles(modules: Sequence[Document]) -> Iterator[Document]:
    for module in modules:
        article = "\n\n".join(_docstrings(module.text, module.group))
        if len(article) >= SHORTEST_ARTICLE:
            for piece in cut(article, separator="\n\n", characters=DOCUMENT_CHARACTERS):
                yield Document(piece, module.group)


def _docstrings(source: str, path: str) -> Iterator[str]:
    """Docstrings of a module, its public classes and their public methods, each under its full name."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a newer parser warns of old escapes
        tree = ast.parse(source)
    yield from _docstrings_below(tree, module)


def _docstrings_below(node: _Documented, name: str) -> Iterator[str]:
    docstring = ast.get_docstring(node)
    if docstring and len(docstring) >= SHORTEST_DOCSTRING:
        yield f"{name}\n\n{docstring}"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from _docstrings_below(child, f"{name}.{child.name}")


def _chapters() -> list[tuple[str, str]]:
    """Name and text of what ``help()`` knows about the language, in alphabetical order, each text once."""
    first_names: dict[str, str] = {}
    for name, text in sorted(topics.items()):
        first_names.setdefault(text.strip(), f"topics/{name}")
    return [(name, text) for text, name in first_names.items()]


@cache
def _modules(library: Path) -> tuple[list[Document], list[Document]]:
    """The library's modules in a fixed pseudo-random order, divided into those read as code and those read as prose.

    Raises:
        DataError: if this Python carries no sources.
    """
    paths = sorted(_module_paths(library), key=hash_of)
    modules = [Document(_read_source(library / path), path) for path in paths]
    modules = [module for module in modules if len(module.text) >= SHORTEST_MODULE]
    code = within_budget(modules, CODE_CHARACTERS)
    prose = modules[len(code) :]
    if not code or not prose:
        raise DataError(
            f"{library} holds {len(modules)} modules as source, too few for sample corpora: "
            "use a Python whose standard library is installed as .py files."
        )
    return code, prose


def _module_paths(library: Path) -> Iterator[str]:
    for path in library.rglob("*.py"):
        relative = path.relative_to(library)
        # the build settings of this very machine are named _sysconfigdata-something
        if _LEFT_OUT.isdisjoint(relative.parts) and not relative.name.startswith("_sysconfigdata"):
            yield relative.as_posix()


def _read_source(path: Path) -> str:
    """Text of a module in the encoding it declares."""
    with tokenize.open(path) as file:
        return file.read()


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))
