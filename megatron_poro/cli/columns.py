"""Tables on a terminal."""

from collections.abc import Iterator, Sequence


def columns(rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()) -> Iterator[str]:
    """Lines of a table, two spaces between columns.

    Args:
        rows: cells, equally many in each; the first row is the head.
        left: numbers of the columns of words, which begin at their left edge.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
