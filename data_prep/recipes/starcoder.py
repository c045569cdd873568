"""Documents of a code corpus in StarCoder's form: tags that tell where a file is from, then its content.

Source: Li et al. 2023, arXiv:2305.06161, section 3 and the appendix on the data format.
"""

from megatron_poro.tokenizer.special_tokens import FILENAME, REPOSITORY

KEY = "content"
"""Name of the text in a record of the real corpus."""

OPENING_TAGS = (
    REPOSITORY,
    FILENAME,
    "<gh_stars>",
    "<issue_start>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<commit_before>",
)
"""A record that begins with one of these has been tagged by the corpus itself."""


def code_document(content: str, filename: str) -> str:
    """The content behind a ``<filename>`` tag, on a line of its own; content that is already tagged stays as it is."""
    if content.startswith(OPENING_TAGS):
        return content
    return f"{FILENAME}{filename}\n{content}"
