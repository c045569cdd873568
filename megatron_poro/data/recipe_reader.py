"""Joins a recipe to tokenizing: the ``DocumentReader`` of one recipe."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_poro.data.corpus_files import CHUNK_BYTES, Chunk, chunks_of_file
from megatron_poro.data.documents import CorpusFile, Dropped, Malformed, RecordReader
from megatron_poro.data.recipe import Recipe, RecipeFolder, Split
from megatron_poro.data.recipe_files import HUB_SUFFIX, Format, grouped, hub_records


@dataclass(frozen=True)
class RecipeReader:
    """Reads the files of one recipe.

    Holds the folder and the name, not the recipe: the functions of a folder outside the package cannot be sent to
    another process, which imports them for itself.
    """

    folder: RecipeFolder
    recipe_name: str

    @property
    def name(self) -> str:
        """Recipe and folder, the latter by its fingerprint."""
        return f"recipe {self.recipe_name} of {self.folder.fingerprint[:16]}"

    def chunks(
        self, path: Path, *, chunk_bytes: int = CHUNK_BYTES, begin: int = 0, end: int | None = None
    ) -> Iterator[Chunk]:
        """Consecutive chunks of the file. One in a format of its own has no parts: all of it begins at offset 0."""
        recipe = self.folder.recipe(self.recipe_name)
        read = _format_of(recipe, path)
        if read is None:
            yield from chunks_of_file(path, columns=recipe.columns, chunk_bytes=chunk_bytes, begin=begin, end=end)
        elif begin == 0:
            yield from grouped(path, read)

    def documents(self, chunk: Chunk) -> Iterator[str | Dropped | Malformed]:
        """What the recipe makes of one chunk."""
        recipe = self.folder.recipe(self.recipe_name)
        return RecordReader(self.recipe_name, extract=recipe.extract).documents(chunk)


def corpus_files(folder: RecipeFolder, source: str, *, raw: Path, split: Split) -> dict[str, list[CorpusFile]]:
    """The files below ``raw`` that make ``source``, under the name of each of its recipes, in their order."""
    return {
        recipe.name: [CorpusFile(path, RecipeReader(folder, recipe.name)) for path in recipe.files(raw, split)]
        for recipe in folder.of_source(source)
    }


def _format_of(recipe: Recipe, path: Path) -> Format | None:
    """The reader of a file that is neither JSON lines nor parquet; the longest end of a name that fits decides."""
    formats = {**recipe.formats, HUB_SUFFIX: hub_records}
    fitting = [suffix for suffix in formats if path.name.endswith(suffix)]
    return formats[max(fitting, key=len)] if fitting else None
