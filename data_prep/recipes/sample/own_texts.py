"""Texts written for this project: Finnish prose, and sentences in English and Finnish that say the same."""

from pathlib import Path

from data_prep.recipes.poro_34b.tatoeba import PAPER_SEPARATOR, translation_documents
from data_prep.recipes.sample.documents import Document
from megatron_poro.errors import DataError

FOLDER = Path(__file__).parent
FINNISH_FOLDER = FOLDER / "finnish"
PAIRS_FILE = FOLDER / "sentence_pairs.tsv"
PAIRS_HEADER = "english\tfinnish"


def finnish_texts() -> list[Document]:
    """One document a file, in the order of their names."""
    paths = sorted(FINNISH_FOLDER.glob("*.txt"))
    return [Document(path.read_text(encoding="utf-8").strip(), path.stem) for path in paths]


def translations_into_finnish(separator: str = PAPER_SEPARATOR) -> list[Document]:
    """Each pair as a request to translate from English."""
    return [
        Document(translation_documents(english, finnish, separator=separator).english_to_finnish, english)
        for english, finnish in sentence_pairs()
    ]


def translations_into_english(separator: str = PAPER_SEPARATOR) -> list[Document]:
    """Each pair as a request to translate from Finnish; in the groups of ``translations_into_finnish``."""
    return [
        Document(translation_documents(english, finnish, separator=separator).finnish_to_english, english)
        for english, finnish in sentence_pairs()
    ]


def sentence_pairs(path: Path = PAIRS_FILE) -> list[tuple[str, str]]:
    """English and Finnish sentence of each pair.

    Raises:
        DataError: if a line is not two sentences with a tab between them.
    """
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    if header != PAIRS_HEADER:
        raise DataError(f"{path} begins with {header!r}, not with the header {PAIRS_HEADER!r}.")
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=2):
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 2 or not all(fields):
            raise DataError(f"{path} line {number} is not two sentences with a tab between them: {line!r}.")
        pairs.append((fields[0], fields[1]))
    return pairs
