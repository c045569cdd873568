"""Documents of a translation corpus: each sentence pair becomes two, one for each direction.

The instruction is in the language of the source sentence. The paper and the data set's own description disagree on what
stands before the assistant's token, a space or a newline, so it is a parameter; the paper's space is the default. The
space between instruction and sentence, and none after the assistant's token, are inferred from the published prompts.

Source: Luukkonen et al. 2024, arXiv:2404.01856, section 3 (Tatoeba Challenge, English-Finnish).
"""

from typing import NamedTuple

from megatron_poro.tokenizer.special_tokens import ASSISTANT, USER

INTO_FINNISH = "Translate into Finnish:"
INTO_ENGLISH = "Käännä englanniksi:"

PAPER_SEPARATOR = " "


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
