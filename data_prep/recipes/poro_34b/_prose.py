"""Plain text out of markdown and out of hard-wrapped books."""

import html
import re
from itertools import pairwise
from statistics import median

_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)\s]*(?:\s+\"[^\"]*\")?\)")
_STRONG = re.compile(r"(\*\*\*|\*\*|\*|___|__|~~)(?=\S)(.+?)(?<=\S)\1")
_UNDERLINED = re.compile(r"(?<!\w)_(?=\S)(.+?)(?<=\S)_(?!\w)")
_LINE_START = re.compile(r"^ {0,3}(?:#{1,6}\s+|>\s?)", re.MULTILINE)
_SPOILER = re.compile(r">!(.*?)!<", re.DOTALL)
_BLANK_LINES = re.compile(r"\n\s*\n")

_WRAPPED_LENGTH = 65
"""Lines that could hardly have been longer are one paragraph; shorter ones are verse or a list."""


def markdown_text(text: str) -> str:
    """What a reader sees of markdown: no marks of emphasis, headings, quotes or code; links by their text."""
    text = html.unescape(text)
    for pattern, replacement in (
        (_SPOILER, r"\1"),
        (_IMAGE, ""),
        (_LINK, r"\1"),
        (_STRONG, r"\2"),
        (_UNDERLINED, r"\1"),
        (_LINE_START, ""),
    ):
        text = pattern.sub(replacement, text)
    return paragraphs_of(text.replace("`", ""))


def paragraphs_of(text: str) -> str:
    """Paragraphs an empty line apart, without blank lines within and spaces around lines."""
    paragraphs = [
        "\n".join(stripped for line in paragraph.split("\n") if (stripped := line.strip()))
        for paragraph in _BLANK_LINES.split(text.strip())
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def unwrapped(text: str) -> str:
    """A book whose paragraphs were cut into lines of some 70 characters, each on one line again; verse stays."""
    paragraphs = [_unwrapped_paragraph(paragraph.strip("\n")) for paragraph in _BLANK_LINES.split(text)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph.strip())


def _unwrapped_paragraph(paragraph: str) -> str:
    lines = [line.rstrip() for line in paragraph.split("\n")]
    indent = min((len(line) - len(line.lstrip()) for line in lines if line), default=0)
    lines = [line[indent:] for line in lines]
    if len(lines) < 2:
        return lines[0]
    # how long each line would have been with the first word of the next
    lengths = [len(f"{line} {(following.split() or [''])[0]}") for line, following in pairwise(lines)]
    return " ".join(lines) if median(lengths) > _WRAPPED_LENGTH else "\n".join(lines)
