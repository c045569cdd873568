"""Xet storage: files as sequences of chunks that lie in blobs ("xorbs"), with the recipes ("shards") of the files.

Written from the public description of the protocol (https://huggingface.co/docs/xet/api, version 1) and what ``hf_xet``
sends. Uploaded blobs and recipes are kept as they came; a file is put together from them by ``hf_xet`` itself, through
this server, and counts only if its sha256 is right. Deduplication over all repositories and hashes of single blobs are
left out: clients cope without the one, and the sha256 of the whole covers the other.
"""

import json
import re
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tests.support.hub.exchange import Refused
from tests.support.hub.whole_files import write_whole

RECORD = 48
"""Everything in a shard comes in records of this many bytes."""
HAS_VERIFICATION = 0x80000000
HAS_SHA256 = 0x40000000
TOKEN_SECONDS = 3600


class Term(NamedTuple):
    """Some consecutive chunks of a blob; the terms of a file in order make the file."""

    blob: str
    bytes: int
    first_chunk: int
    end_chunk: int


class Recipe(NamedTuple):
    """How a file is put together."""

    file: str
    sha256: str | None
    terms: list[Term]


class Chunk(NamedTuple):
    """Where a chunk ends in its blob, and how long it is once it is unpacked."""

    end: int
    bytes: int


class ChunkStore:
    """All blobs and recipes of a hub, and the tokens that open them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tokens: dict[str, tuple[str, float]] = {}
        for name in ("blobs", "recipes", "by_sha256"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    # --- tokens ---

    def token(self, scope: str) -> tuple[str, int]:
        """A token for "read", "write" or "server", and the time at which it ends."""
        token, end = f"xet_{uuid.uuid4().hex}", int(time.time()) + TOKEN_SECONDS
        self._tokens[token] = (scope, end)
        return token, end

    def scope(self, token: str | None) -> str:
        """What the token is for. Raises Refused (401) if it is none of ours or has ended."""
        scope, end = self._tokens.get(token or "", ("", 0.0))
        if end < time.time():
            raise Refused(401, "bad or expired xet token")
        return scope

    # --- blobs and recipes ---

    def blob(self, name: str) -> Path:
        return self.folder / "blobs" / _checked(name)

    def put_blob(self, name: str, blocks: Iterable[bytes]) -> bool:
        """Keeps a blob; tells whether it is new."""
        path = self.blob(name)
        is_new = not path.exists()
        unfinished = path.with_name(f"{name}.{uuid.uuid4().hex}")
        try:
            with open(unfinished, "wb") as file:
                file.writelines(blocks)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return is_new

    def put_shard(self, data: bytes) -> None:
        """Keeps the recipes of a shard. Raises Refused (400) if a blob is missing."""
        for recipe in read_shard(data):
            missing = [term.blob for term in recipe.terms if not self.blob(term.blob).exists()]
            if missing:
                raise Refused(400, f"shard names a xorb that was not uploaded: {missing[0]}")
            write_whole(self.folder / "recipes" / recipe.file, json.dumps(recipe.terms))
            if recipe.sha256:
                write_whole(self.folder / "by_sha256" / recipe.sha256, recipe.file)

    def file_of(self, sha256: str) -> str | None:
        """The Xet name of the file with this checksum, if it came by Xet."""
        path = self.folder / "by_sha256" / _checked(sha256)
        return path.read_text() if path.exists() else None

    def reconstruction(self, file: str, first: int, last: int | None, blob_url: str) -> dict[str, object]:
        """The terms that cover bytes ``first`` to ``last`` of a file, and where their blobs can be fetched.

        Raises:
            Refused: 404 for an unknown file, 416 for a range beyond its end.
        """
        path = self.folder / "recipes" / _checked(file)
        if not path.exists():
            raise Refused(404, "file not found")
        terms: list[dict[str, object]] = []
        places: dict[str, list[dict[str, object]]] = {}
        position, skipped = 0, None
        for term in (Term(*fields) for fields in json.loads(path.read_text())):
            with open(self.blob(term.blob), "rb") as blob:
                chunks = read_chunks(blob)
            term, before = _without_chunks_before(term, chunks, first - position)
            position += before
            if last is not None and position > last:
                break
            if term.first_chunk == term.end_chunk:
                continue
            skipped = first - position if skipped is None else skipped
            term = _without_chunks_after(term, chunks, last - position if last is not None else None)
            span = {"start": term.first_chunk, "end": term.end_chunk}
            terms.append({"hash": term.blob, "unpacked_length": term.bytes, "range": span})
            start = chunks[term.first_chunk - 1].end if term.first_chunk else 0
            in_blob = {"start": start, "end": chunks[term.end_chunk - 1].end - 1}
            place: dict[str, object] = {"range": span, "url": f"{blob_url}/{term.blob}", "url_range": in_blob}
            if place not in places.setdefault(term.blob, []):
                places[term.blob].append(place)
            position += term.bytes
        if not terms and first:
            raise Refused(416, "the range lies outside the file")
        return {"offset_into_first_range": skipped or 0, "terms": terms, "fetch_info": places}

    def rebuild(self, sha256: str, size: int, target: Path, *, endpoint: str) -> bool:
        """Writes a file that came by Xet to ``target``; False if there is none of this checksum."""
        file = self.file_of(sha256)
        if file is None:
            return False
        import hf_xet  # type: ignore[import-untyped]  # only here: a hub without Xet works without it

        token, end = self.token("server")
        group = hf_xet.XetSession().new_file_download_group(endpoint=endpoint, token=token, token_expiry_unix_secs=end)
        with group as download:
            download.start_download_file(hf_xet.XetFileInfo(file, size), str(target))
        return True


def read_shard(data: bytes) -> Iterator[Recipe]:
    """The recipes of an uploaded shard, which starts with a header and ends its files with a record of ones."""
    at = RECORD
    while at + RECORD <= len(data):
        file, (flags, count) = data[at : at + 32], struct.unpack("<II", data[at + 32 : at + 40])
        at += RECORD
        if file == b"\xff" * 32:
            return
        terms = [_read_term(data[at + RECORD * i : at + RECORD * (i + 1)]) for i in range(count)]
        at += RECORD * count * (2 if flags & HAS_VERIFICATION else 1)
        sha256 = None
        if flags & HAS_SHA256:
            sha256 = _name(data[at : at + 32])
            at += RECORD
        yield Recipe(_name(file), sha256, terms)


def read_chunks(blob: BinaryIO) -> list[Chunk]:
    """The chunks of a blob: each is a header of 8 bytes and its packed content; an index may follow them."""
    chunks, at = [], 0
    while len(header := blob.read(8)) == 8 and header[0] == 0:
        at = blob.seek(at + 8 + int.from_bytes(header[1:4], "little"))
        chunks.append(Chunk(at, int.from_bytes(header[5:8], "little")))
    return chunks


def _without_chunks_before(term: Term, chunks: list[Chunk], offset: int) -> tuple[Term, int]:
    """The term from the chunk on that holds byte ``offset`` of it, and the bytes that were left out."""
    dropped = 0
    while term.first_chunk < term.end_chunk and dropped + chunks[term.first_chunk].bytes <= offset:
        size = chunks[term.first_chunk].bytes
        dropped += size
        term = term._replace(bytes=term.bytes - size, first_chunk=term.first_chunk + 1)
    return term, dropped


def _without_chunks_after(term: Term, chunks: list[Chunk], last: int | None) -> Term:
    """The term up to the chunk that holds byte ``last`` of it."""
    while last is not None and term.end_chunk - term.first_chunk > 1:
        size = chunks[term.end_chunk - 1].bytes
        if term.bytes - size <= last:
            break
        term = term._replace(bytes=term.bytes - size, end_chunk=term.end_chunk - 1)
    return term


def _read_term(record: bytes) -> Term:
    _, size, first, end = struct.unpack("<4I", record[32:48])
    return Term(_name(record[:32]), size, first, end)


def _name(digest: bytes) -> str:
    """The text form of 32 bytes: four little-endian words in hex."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))


def _checked(name: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", name):
        raise Refused(400, "not a hash")
    return name
