"""The Tatoeba Challenge, English-Finnish: each sentence pair becomes two documents, one for each direction.

The instruction is in the language of the source sentence. The paper shows a space before the assistant's token, the
program that made the data a newline in its example, and a later program of the authors says ``Käännä suomeksi:`` to go
into Finnish: so separator and wording are options, and the paper decides what they are unasked. The space between
instruction and sentence, and none after the assistant's token, are the same in all of them.

Sources: Luukkonen et al. 2024, arXiv:2404.01856, section 3; spyysalo/xling-instructions; Tiedemann 2020, WMT
2020.wmt-1.139.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from megatron_poro.data.documents import Dropped, Extract
from megatron_poro.data.recipe import Recipe, text_under
from megatron_poro.data.recipe_files import Format, text_lines
from megatron_poro.errors import ConfigError, DataError
from megatron_poro.tokenizer.special_tokens import ASSISTANT, USER

INTO_FINNISH = "Translate into Finnish:"
INTO_ENGLISH = "Käännä englanniksi:"

PAPER_SEPARATOR = " "
SEPARATORS = {"space": PAPER_SEPARATOR, "newline": "\n"}

_SOURCE_ENDS = (".src.gz", ".src")


class TranslationDocuments(NamedTuple):
    """The two documents of one sentence pair."""

    english_to_finnish: str
    finnish_to_english: str


def translation_documents(english: str, finnish: str, *, separator: str = PAPER_SEPARATOR) -> TranslationDocuments:
    """Both directions of a sentence pair."""
    return TranslationDocuments(
        english_to_finnish=translation_document(english, finnish, instruction=INTO_FINNISH, separator=separator),
        finnish_to_english=translation_document(finnish, english, instruction=INTO_ENGLISH, separator=separator),
    )


def translation_document(source: str, target: str, *, instruction: str, separator: str = PAPER_SEPARATOR) -> str:
    """One document: the user asks for a translation of ``source``, the assistant answers with ``target``.

    Args:
        source: sentence to be translated.
        target: its translation.
        instruction: what is asked, in the language of ``source``.
        separator: stands between the sentence and the assistant's token.
    """
    return f"{USER}{instruction} {source}{separator}{ASSISTANT}{target}"


def sentence_pairs(path: Path) -> Iterator[Mapping[str, str]]:
    """Records with ``english`` and ``finnish`` from a file ``*.src`` or ``*.src.gz`` and the ``*.trg`` beside it.

    Raises:
        DataError: if the second file is missing, or they have different numbers of lines.
    """
    target = path.with_name(path.name.replace(".src", ".trg"))
    if not target.is_file():
        raise DataError(f"{path} holds one side of sentence pairs, but {target} with the other does not exist.")
    english, finnish = text_lines(path), text_lines(target)
    number = 0
    for number, left in enumerate(english, start=1):
        right = next(finnish, None)
        if right is None:
            raise DataError(f"{target} ends after line {number - 1}, {path} goes on: their lines are not pairs.")
        yield {"english": left, "finnish": right}
    if next(finnish, None) is not None:
        raise DataError(f"{path} ends after line {number}, {target} goes on: their lines are not pairs.")


def recipes(
    separator: str = "space", into_finnish: str = INTO_FINNISH, into_english: str = INTO_ENGLISH
) -> Sequence[Recipe]:
    """The two directions, each a source of the mixture.

    Args:
        separator: what stands before the assistant's token, ``space`` or ``newline``.
        into_finnish: instruction of English sentences.
        into_english: instruction of Finnish sentences.

    Raises:
        ConfigError: if the separator is neither.
    """
    if separator not in SEPARATORS:
        raise ConfigError(f"tatoeba.separator={separator} is not one of {', '.join(SEPARATORS)}.")
    between = SEPARATORS[separator]
    return [
        _direction("tatoeba_en_fi", _Direction("english", "finnish", into_finnish, between)),
        _direction("tatoeba_fi_en", _Direction("finnish", "english", into_english, between)),
    ]


@dataclass(frozen=True)
class _Direction:
    """Makes the document of one direction; the keys name the sides of a pair."""

    source: str
    target: str
    instruction: str
    separator: str

    def __call__(self, record: Mapping[str, Any]) -> Iterable[str | Dropped]:
        source, target = text_under(record, self.source).rstrip(), text_under(record, self.target).rstrip()
        if not source or not target:
            return [Dropped("one side of the pair is empty")]
        return [translation_document(source, target, instruction=self.instruction, separator=self.separator)]


def _direction(name: str, extract: Extract) -> Recipe:
    formats: dict[str, Format] = dict.fromkeys(_SOURCE_ENDS, sentence_pairs)
    return Recipe(
        name=name,
        source=name,
        origin="https://object.pouta.csc.fi/Tatoeba-Challenge-v2021-08-07/eng-fin.tar",
        licence="CC BY-NC-SA 4.0",
        form="Known from the release's description: data/release/v2021-08-07/eng-fin/train.src.gz and train.trg.gz "
        "with one sentence a line, src English and trg Finnish, and dev.src, dev.trg uncompressed. That "
        "development pairs served as validation is inferred from the file names of the original run (tatoeba-eval).",
        train=("tatoeba/**/train.src.gz", "tatoeba/**/train.src"),
        validation=("tatoeba/**/dev.src", "tatoeba/**/dev.src.gz"),
        extract=extract,
        formats=formats,
        in_vocabulary=False,  # the tokenizer's sample was English, Finnish and code in equal parts
    )
