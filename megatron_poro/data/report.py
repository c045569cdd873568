"""What is in datasets, for the eye: numbers in a table, and one picture with a row for each dataset.

Lengths and repetitions are counted over all documents; characters and bytes, for which text must be decoded, over an
even sample of them. Documents that are alike are found by a hash of their tokens, without keeping any text. The picture
is SVG written by hand: it needs no library, and every browser shows it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.durable import durable_write
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.manifest import read_manifest
from megatron_poro.tokenizer.tokenizer import Tokenizer

REPEATED_SHOWN = 3
_START_CHARACTERS = 60
_BINS = 31  # powers of two: any length that the format can hold

_WIDTH, _TOP, _ROW, _FOOT = 960, 48, 112, 24
_BAR_LEFT, _HISTOGRAM_LEFT = 290, 520

_USUAL_INVISIBLE = frozenset("\n\t\r\u00a0\u00ad\u2009\u200b\u200c\u200d\u202f\u3000")
"""White space and joiners that ordinary texts hold although nothing is printed for them."""


@dataclass(frozen=True)
class Repeated:
    """A document that occurs ``count`` times, and the start of its text."""

    count: int
    start: str


@dataclass(frozen=True)
class DatasetReport:
    """Numbers of one dataset.

    Attributes:
        name: last part of its prefix.
        documents, tokens: of the whole dataset, end-of-document tokens included.
        dropped: records left out when it was made, by reason; empty without a manifest.
        bytes_per_token: UTF-8 bytes of the sampled texts per token, end-of-document tokens left out.
        lengths: documents of 1, 2-3, 4-7, 8-15, ... tokens.
        median_length, longest: tokens.
        duplicates: documents that are the same as an earlier one.
        repeated: the most frequent of those.
        odd_share: share of ``odd_characters`` in the sample.
        sampled: documents that were decoded.
    """

    name: str
    documents: int
    tokens: int
    dropped: dict[str, int]
    bytes_per_token: float
    lengths: NDArray[np.int64]
    median_length: int
    longest: int
    duplicates: int
    repeated: tuple[Repeated, ...]
    odd_share: float
    sampled: int


def report_dataset(dataset: IndexedDataset, tokenizer: Tokenizer, *, sample: int) -> DatasetReport:
    """Reads a dataset.

    Memory: about 40 bytes a document. All tokens are read once.

    Args:
        dataset: what to look at.
        tokenizer: the one that made it.
        sample: documents to decode, spread evenly.
    """
    manifest = read_manifest(dataset.prefix)
    sizes = np.asarray(dataset.sizes)
    places = np.linspace(0, max(len(sizes) - 1, 0), min(sample, len(sizes)))
    chosen: list[int] = np.unique(places.astype(np.int64)).tolist()
    texts = [_text(dataset, number, tokenizer) for number in chosen]
    sampled_tokens = sum(int(sizes[number]) - 1 for number in chosen)
    characters = sum(map(len, texts))
    duplicates, repeated = _repetitions(dataset, tokenizer)
    return DatasetReport(
        name=dataset.prefix.name,
        documents=dataset.num_documents,
        tokens=dataset.num_tokens,
        dropped={} if manifest is None else manifest.dropped,
        bytes_per_token=sum(len(text.encode()) for text in texts) / max(sampled_tokens, 1),
        lengths=np.bincount(np.log2(np.maximum(sizes, 1)).astype(np.int64), minlength=_BINS).astype(np.int64),
        median_length=int(np.median(sizes)) if len(sizes) else 0,
        longest=int(sizes.max()) if len(sizes) else 0,
        duplicates=duplicates,
        repeated=repeated,
        odd_share=sum(map(odd_characters, texts)) / max(characters, 1),
        sampled=len(texts),
    )


def odd_characters(text: str) -> int:
    """Characters that are not to be expected in a text: control, private and unassigned ones, U+FFFD."""
    return sum(text.count(character) for character in set(text) if _is_odd(character))


def _is_odd(character: str) -> bool:
    return character == "\ufffd" or not (character.isprintable() or character in _USUAL_INVISIBLE)


def table(reports: Sequence[DatasetReport]) -> str:
    """The numbers of all datasets as text, then their most repeated documents and what was left out."""
    head = ("dataset", "documents", "tokens", "bytes/token", "median", "longest", "repeated", "odd characters")
    rows = [
        (
            report.name,
            f"{report.documents:,}",
            f"{report.tokens:,}",
            f"{report.bytes_per_token:.2f}",
            f"{report.median_length:,}",
            f"{report.longest:,}",
            f"{report.duplicates / max(report.documents, 1):.2%}",
            f"{report.odd_share:.4%}",
        )
        for report in reports
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in (head, *rows))
    ]
    for report in reports:
        for repeated in report.repeated:
            lines.append(f"{report.name}: {repeated.count:,} times: {repeated.start}")
        if report.dropped:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in report.dropped.items())
            lines.append(f"{report.name}: left out when it was made: {reasons}")
    return "\n".join(lines)


def write_picture(reports: Sequence[DatasetReport], path: Path) -> None:
    """Writes the picture of ``picture`` to ``path``, whole or not at all."""
    with durable_write(path) as file:
        file.write(picture(reports).encode())


def picture(reports: Sequence[DatasetReport]) -> str:
    """An SVG: for each dataset its numbers, its tokens as a bar, and the histogram of its lengths."""
    height = _TOP + _ROW * len(reports) + _FOOT
    most = max((report.tokens for report in reports), default=1)
    used = [int(np.flatnonzero(report.lengths)[-1]) for report in reports if report.documents]
    bins = max([*used, 0]) + 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" fill="#333333">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _words(20, 28, "Dataset", weight="bold"),
        _words(_BAR_LEFT, 28, "Tokens", weight="bold"),
        _words(_HISTOGRAM_LEFT, 28, "Documents by length in tokens", weight="bold"),
    ]
    for position, report in enumerate(reports):
        parts.extend(_row(report, _TOP + _ROW * position, most=most, bins=bins))
    return "\n".join([*parts, *_axis(_TOP + _ROW * len(reports) + 4, bins), "</svg>"]) + "\n"


def _row(report: DatasetReport, top: int, *, most: int, bins: int) -> list[str]:
    parts = [
        f'<line x1="20" x2="{_WIDTH - 20}" y1="{top - 8}" y2="{top - 8}" stroke="#dddddd"/>',
        _words(20, top + 14, report.name, weight="bold"),
        _words(20, top + 32, f"{report.documents:,} documents, median {report.median_length:,} tokens"),
        _words(20, top + 48, f"{report.bytes_per_token:.2f} bytes per token"),
        _words(20, top + 64, f"{report.duplicates / max(report.documents, 1):.2%} repeated documents"),
        _words(20, top + 80, f"{report.odd_share:.4%} odd characters"),
    ]
    width = (_HISTOGRAM_LEFT - _BAR_LEFT - 40) * report.tokens / max(most, 1)
    parts.append(f'<rect x="{_BAR_LEFT}" y="{top + 22}" width="{width:.1f}" height="26" fill="#2b6ca3"/>')
    parts.append(_words(_BAR_LEFT, top + 66, f"{report.tokens:,}"))
    column = (_WIDTH - 20 - _HISTOGRAM_LEFT) / bins
    tallest = max(int(report.lengths.max()), 1)
    for number, count in enumerate(report.lengths[:bins].tolist()):
        if count:
            tall = max((_ROW - 30) * count / tallest, 1)
            x, y = _HISTOGRAM_LEFT + number * column, top + _ROW - 18 - tall
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{column - 2:.1f}" height="{tall:.1f}" fill="#c2571a"/>')
    return parts


def _axis(top: int, bins: int) -> list[str]:
    """The powers of two under the histograms, as many as have room."""
    column = (_WIDTH - 20 - _HISTOGRAM_LEFT) / bins
    step = -(-bins // 12)
    return [_words(_HISTOGRAM_LEFT + number * column, top, _short(1 << number)) for number in range(0, bins, step)]


def _short(number: int) -> str:
    for size, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if number >= size:
            return f"{number // size}{letter}"
    return str(number)


def _words(x: float, y: float, text: str, *, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}">{escape(text)}</text>'


def _text(dataset: IndexedDataset, number: int, tokenizer: Tokenizer) -> str:
    """A document without its end, which is not text of the corpus."""
    ids = dataset.document(number).tolist()
    return tokenizer.decode(ids[:-1] if ids[-1:] == [tokenizer.eos_id] else ids)


def _repetitions(dataset: IndexedDataset, tokenizer: Tokenizer) -> tuple[int, tuple[Repeated, ...]]:
    """How many documents are the same as an earlier one, and the most frequent of these."""
    hashes = np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(dataset.document(number).data, digest_size=8).digest(), "little")
            for number in range(dataset.num_documents)
        ),
        dtype=np.uint64,
        count=dataset.num_documents,
    )
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    most = [int(place) for place in np.argsort(-counts, kind="stable")[:REPEATED_SHOWN] if counts[place] > 1]
    repeated = tuple(
        Repeated(int(counts[place]), _start(_text(dataset, int(first[place]), tokenizer))) for place in most
    )
    return int(dataset.num_documents - len(counts)), repeated


def _start(text: str) -> str:
    line = " ".join(text[: 4 * _START_CHARACTERS].split())
    return line if len(line) <= _START_CHARACTERS else f"{line[:_START_CHARACTERS]} ..."
