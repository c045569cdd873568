"""A sample of a source's texts that is the same every time, for training a tokenizer."""

from collections.abc import Iterator, Sequence

from megatron_poro.data.documents import CorpusFile, Malformed, read_documents
from megatron_poro.errors import DataError

FILES_SAMPLED = 256
"""Files that are opened at most; a corpus of tens of thousands is sampled at even distances."""


def sample_texts(files: Sequence[CorpusFile], *, characters: int, skip_malformed: bool = False) -> Iterator[str]:
    """Texts from the beginnings of files spread evenly over a corpus, an equal share of ``characters`` from each.

    A text that would exceed the share of its file is cut there. What a small file does not fill is not made up for, so
    the sample of a small corpus may be smaller than asked.

    Args:
        files: the corpus, in its order.
        characters: how many are wanted in all.
        skip_malformed: pass over records that cannot be read; otherwise the first is an error.

    Raises:
        DataError: if a file is damaged, or a record cannot be read.
    """
    count = min(len(files), FILES_SAMPLED)
    for position in range(count):
        file = files[position * len(files) // count]
        left = characters * (position + 1) // count - characters * position // count
        for document in read_documents(file.path, file.reader):
            if isinstance(document, Malformed) and not skip_malformed:
                raise DataError(document.problem)
            if isinstance(document, str):
                yield document[:left]
                left -= len(document)
            if left <= 0:
                break
