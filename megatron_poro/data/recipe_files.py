"""Files that are read for recipes only: a corpus's own formats, and datasets at the Hugging Face Hub.

What comes in terabytes is JSON lines or parquet, which ``corpus_files`` cuts without parsing. A format of its own is
read record by record in the one process that cuts, and its records are sent on in groups; that suits gigabytes.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_poro.data.corpus_files import chunks_of_file
from megatron_poro.errors import DataError

Format = Callable[[Path], Iterator[Mapping[str, Any]]]
"""Reads the records of one file in their order; raises DataError, naming the place, where the file is damaged."""

HUB_SUFFIX = ".hub.json"
"""End of the name of a file that stands for a dataset at the Hub; ``hub_records`` says what is in it."""

_RECORDS_PER_GROUP = 256


@dataclass(frozen=True)
class RecordGroup:
    """Consecutive records of a file in a format of its own; ``first`` is the number of the first, from 1."""

    path: Path
    first: int
    items: tuple[Mapping[str, Any], ...]
    end: int = 0

    def records(self) -> Iterator[Mapping[str, Any]]:
        """The records."""
        return iter(self.items)

    def place(self, position: int) -> str:
        """File and number of the record."""
        return f"{self.path} record {self.first + position}"

    def __str__(self) -> str:
        return f"{self.path} from record {self.first}"


def grouped(path: Path, read: Format) -> Iterator[RecordGroup]:
    """The records of a file in groups that are worth sending to another process."""
    records = read(path)
    first = 1
    while items := tuple(islice(records, _RECORDS_PER_GROUP)):
        yield RecordGroup(path, first, items)
        first += len(items)


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a text file in UTF-8, without their ends; ``.gz`` and ``.zst`` files are decompressed.

    Raises:
        DataError: if the file is damaged, or a line is not UTF-8.
    """
    for chunk in chunks_of_file(path):
        for position, line in enumerate(chunk.records()):
            try:
                yield line.decode("utf-8").removesuffix("\r")
            except UnicodeDecodeError as error:
                raise DataError(f"{chunk.place(position)} is not UTF-8 ({error}); convert the file.") from error


def hub_records(path: Path) -> Iterator[Mapping[str, Any]]:
    """Streams a dataset of the Hub; nothing of it is kept on the disk.

    ``path`` holds the arguments of ``datasets.load_dataset`` as a JSON object, such as ``{"path":
    "HuggingFaceFW/fineweb-2", "name": "fin_Latn", "split": "train", "revision": "<commit>"}``. With ``"shard": [2, 8]``
    it stands for the third of eight parts, so that several files can share a dataset. Name a revision: without one a
    second run may read another version.

    Raises:
        DataError: if the file is not such an object, or the dataset cannot be reached or read.
    """
    try:
        arguments = dict(json.loads(path.read_bytes()))
        shard = arguments.pop("shard", None)
        records = importlib.import_module("datasets").load_dataset(**{"split": "train", **arguments, "streaming": True})
        if shard is not None:
            index, total = shard
            records = records.shard(num_shards=total, index=index)
        yield from records
    except Exception as error:  # the library answers with whatever its file systems and parsers raise
        raise DataError(
            f"{path}: the dataset cannot be streamed ({type(error).__name__}: {error}). Check what the file names, and "
            "that this machine reaches the Hub; or download the dataset's files in its place."
        ) from error
