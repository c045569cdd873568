"""Recipes: which files of a corpus are read, what is left out of them, and what their records become.

A recipe names a corpus, so recipes live in folders outside the package (``data_prep/recipes/poro_34b``). Each file of
such a folder that does not begin with ``_`` has a function ``recipes(...) -> Sequence[Recipe]``; its keyword arguments
are the options of the file, texts with a default. The files are imported as a package of their own, so they may share
code with ``from . import``.

Several recipes may go to one source: nine Finnish corpora are one dataset. What a recipe leaves out it leaves out by a
``Dropped`` with a reason, so that it is counted.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from megatron_poro.data.documents import Dropped, Extract
from megatron_poro.data.recipe_files import Format
from megatron_poro.errors import ConfigError

EMPTY = Dropped("empty text")
"""A record whose text holds nothing but white space."""


class Split(str, Enum):
    """What the documents of a file are for."""

    TRAIN = "train"
    VALIDATION = "validation"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one corpus becomes documents.

    Attributes:
        name: of the corpus, such as ``finnish/yle``; unique in its folder.
        source: name of the source in a mixture that its documents go to.
        origin: where the corpus is from: an address or a citation.
        licence: under what its texts may be used.
        form: what is known of its files and records, from which public source, and what is inferred.
        train: patterns of its training files below the folder of raw files, as ``Path.glob`` takes them.
        validation: the same for validation; what matches these is never read for training.
        extract: the documents of one record, or why it has none.
        formats: readers of files that are neither JSON lines nor parquet, by the end of their names.
        columns: parquet columns that ``extract`` needs; None reads all.
        in_vocabulary: whether a new tokenizer learns from a sample of this corpus.
    """

    name: str
    source: str
    origin: str
    licence: str
    form: str
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    extract: Extract
    formats: Mapping[str, Format] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    in_vocabulary: bool = True

    def files(self, raw: Path, split: Split) -> list[Path]:
        """The files below ``raw`` that are read for ``split``, in the order of their names."""
        held_out = _matches(raw, self.validation)
        return sorted(held_out if split is Split.VALIDATION else _matches(raw, self.train) - held_out)


@dataclass(frozen=True)
class RecipeFolder:
    """The recipes of a folder: a value that can be sent to another process, which then imports them for itself.

    Attributes:
        folder: holds the files of recipes.
        options: ``{file: {option: value}}``: what a file of recipes leaves to its user.
    """

    folder: Path
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @cached_property
    def recipes(self) -> tuple[Recipe, ...]:
        """All recipes, in the order of files and within them.

        Raises:
            ConfigError: if the folder has no recipes, an option is unknown or refused, or two recipes share a name.
        """
        files = self._files()
        _refuse_unknown(self.options, [path.stem for path in files], f"no file of {self.folder}")
        package = _package(self.folder)
        found: list[Recipe] = []
        for path in files:
            found += _recipes_of(importlib.import_module(f"{package}.{path.stem}"), self.options.get(path.stem, {}))
        names = [recipe.name for recipe in found]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ConfigError(f"{self.folder} has {names.count(repeated)} recipes called {repeated!r}; rename them.")
        return tuple(found)

    def recipe(self, name: str) -> Recipe:
        """The recipe called ``name``."""
        return next(recipe for recipe in self.recipes if recipe.name == name)

    def of_source(self, source: str) -> list[Recipe]:
        """The recipes whose documents go to ``source``, in their order."""
        return [recipe for recipe in self.recipes if recipe.source == source]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the files and the options: while it is the same, so are the documents."""
        options = sorted((file, sorted(values.items())) for file, values in self.options.items())
        digest = hashlib.sha256(repr(options).encode())
        for path in sorted(self.folder.glob("*.py")):
            digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Without the imported recipes: their functions belong to this process."""
        return {"folder": self.folder, "options": self.options}

    def _files(self) -> list[Path]:
        files = sorted(path for path in self.folder.glob("*.py") if not path.name.startswith("_"))
        if not files:
            raise ConfigError(
                f"--recipes {self.folder} holds no recipes (files *.py); give a folder like data_prep/recipes/poro_34b."
            )
        return files


def parse_options(entries: Iterable[str]) -> dict[str, dict[str, str]]:
    """Reads options of recipes, ``FILE.OPTION=VALUE`` each.

    Raises:
        ConfigError: if one has another form.
    """
    options: dict[str, dict[str, str]] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        file, dot, option = name.partition(".")
        if not (equals and dot and file and option):
            raise ConfigError(f"--option {entry} is not FILE.OPTION=VALUE, as tatoeba.separator=newline is.")
        options.setdefault(file, {})[option] = value
    return options


def text_under(record: Mapping[str, Any], key: str = "text") -> str:
    """The text under ``key``.

    Raises:
        KeyError: if the record has no such key.
        TypeError: if there is something else than a text.
    """
    value = record[key]
    if not isinstance(value, str):
        raise TypeError(f"has a {type(value).__name__} under {key!r}, where a text is needed.")
    return value


def one_document(text: str) -> Sequence[str | Dropped]:
    """A text as the only document of its record, unless it is blank."""
    return [text] if text.strip() else [EMPTY]


def plain_text(record: Mapping[str, Any]) -> Sequence[str | Dropped]:
    """The rule of most corpora: one document, the text under ``text``."""
    return one_document(text_under(record))


def _matches(raw: Path, patterns: Sequence[str]) -> set[Path]:
    return {path for pattern in patterns for path in raw.glob(pattern) if path.is_file()}


def _package(folder: Path) -> str:
    """Name of a package, imported if it was not, whose modules are the files of ``folder``."""
    place = str(folder.resolve())
    name = f"_recipes_{hashlib.sha256(place.encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_loader(name, loader=None, is_package=True)
        assert spec is not None, "a spec that needs no loader can always be made"
        package = importlib.util.module_from_spec(spec)
        package.__path__ = [place]
        sys.modules[name] = package
    return name


def _recipes_of(module: ModuleType, options: Mapping[str, str]) -> Iterator[Recipe]:
    make = getattr(module, "recipes", None)
    if not callable(make):
        raise ConfigError(
            f"{module.__file__} has no function recipes(); begin the name of a file that holds something else with _."
        )
    _refuse_unknown(options, list(inspect.signature(make).parameters), f"not an option of {module.__file__}")
    yield from make(**options)


def _refuse_unknown(given: Iterable[str], known: Sequence[str], what: str) -> None:
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"--option: {unknown} is {what}; known are {', '.join(known) or 'none'}.")
