"""The full account of a dataset that was tokenized here: each source file, what became of its records, checksums.

``PREFIX.manifest.json`` beside the dataset. It says nothing of times, machines or workers: the same corpus and
tokenizer give the same bytes. ``PREFIX.meta.json`` is its summary, which a training run reads.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.errors import DataError

_HASH_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What became of one source file; its documents are consecutive in the dataset.

    Attributes:
        path: as it was named to the command.
        source_bytes: its size on disk.
        reader: how it was read.
        documents: documents of it that are in the dataset.
        tokens: their tokens, one end-of-document token each included.
        empty_documents: texts that held no token.
        dropped: records that were left out, by reason; those that could not be read are ``malformed``.
        malformed: what was wrong with the first of those, with file and line.
        sha256: of its tokens as they lie in the .bin.
        continues: the file began in the shard before this one.
    """

    path: str
    source_bytes: int
    reader: str
    documents: int
    tokens: int
    empty_documents: int
    dropped: dict[str, int]
    malformed: tuple[str, ...]
    sha256: str
    continues: bool = False


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """Which part of a corpus a dataset is, from 0; ``corpus`` names the list of all its files and their sizes."""

    index: int
    of: int
    corpus: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A dataset and the files that it was made from, in order.

    Attributes:
        tokenizer: fingerprint of the tokenizer.
        vocab_size: ids of that tokenizer.
        token_bytes: bytes of one token in the .bin.
        max_token_id: largest id; -1 for a dataset without tokens.
        idx_sha256: of the whole .idx.
        files: the source files.
        shard: set if the dataset is one shard of a corpus.
    """

    tokenizer: str
    vocab_size: int
    token_bytes: int
    max_token_id: int
    idx_sha256: str
    files: tuple[FileRecord, ...]
    shard: ShardRecord | None = field(default=None)

    @property
    def dropped(self) -> dict[str, int]:
        """Records left out of the whole dataset, by reason."""
        return dict(sorted(sum((Counter(record.dropped) for record in self.files), Counter[str]()).items()))

    @property
    def documents(self) -> int:
        """Documents in the dataset."""
        return sum(record.documents for record in self.files)

    @property
    def tokens(self) -> int:
        """Tokens in the dataset."""
        return sum(record.tokens for record in self.files)

    def summary(self) -> DatasetMetadata:
        """Content of the side file that training reads."""
        return DatasetMetadata(
            tokenizer=self.tokenizer,
            vocab_size=self.vocab_size,
            documents=self.documents,
            tokens=self.tokens,
            max_token_id=self.max_token_id,
            empty_documents=sum(record.empty_documents for record in self.files),
            inputs=tuple(record.path for record in self.files),
        )

    def to_json(self) -> str:
        """Text of the file."""
        totals = {"documents": self.documents, "tokens": self.tokens, "dropped": self.dropped}
        return json.dumps({**totals, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def manifest_path(prefix: Path) -> Path:
    """The manifest of a dataset."""
    return Path(f"{prefix}.manifest.json")


def read_manifest(prefix: Path) -> Manifest | None:
    """The manifest of the dataset ``prefix``, or None where there is none.

    Raises:
        DataError: if it is damaged.
    """
    path = manifest_path(prefix)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        totals = {name: content.pop(name) for name in ("documents", "tokens", "dropped")}
        files = tuple(file_record(record) for record in content.pop("files"))
        shard = content.pop("shard")
        manifest = Manifest(**content, files=files, shard=None if shard is None else ShardRecord(**shard))
        if totals != {"documents": manifest.documents, "tokens": manifest.tokens, "dropped": manifest.dropped}:
            raise ValueError("its totals are not the sums over its files")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}). Copy it again, or tokenize again."
        ) from error
    return manifest


def file_record(content: dict[str, Any]) -> FileRecord:
    """A record from its JSON."""
    return FileRecord(**{**content, "malformed": tuple(content["malformed"])})


def sha256_of(path: Path, *, begin: int = 0, end: int | None = None) -> str:
    """SHA-256 of a file, or of the bytes of it between two offsets, in hex."""
    digest = hashlib.sha256()
    update_from_file(digest, path, begin=begin, end=end)
    return digest.hexdigest()


def update_from_file(digest: "hashlib._Hash", path: Path, *, begin: int = 0, end: int | None = None) -> None:
    """Feeds a file, or the bytes of it between two offsets, to a digest."""
    left = (path.stat().st_size if end is None else end) - begin
    with open(path, "rb") as file:
        file.seek(begin)
        while left > 0 and (data := file.read(min(_HASH_BYTES, left))):
            digest.update(data)
            left -= len(data)


def corpus_name(files: Sequence[tuple[str, int, str]]) -> str:
    """A short name for a list of files with their sizes and readers: shards of one corpus share it."""
    return hashlib.sha256(json.dumps([list(file) for file in files]).encode()).hexdigest()[:16]
