"""Damage to a dataset is refused by file and byte, or changes nothing: ten thousand seeded mutations, each a file."""

import re
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.indexed_writer import IndexedWriter
from megatron_poro.data.metadata import DatasetMetadata
from megatron_poro.errors import DataError

Writer = Callable[..., None]
Reader = Callable[[Path], list[list[int]]]

MUTATIONS = 10_000
LARGEST_ALLOCATION = 1 << 20
EXTREMES = (0, 1, -1, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63), 7)
NAMES_FILE_AND_OFFSET = re.compile(r"d\.(idx|bin).*(\bbyte \d+|has \d+ bytes)", re.DOTALL)


def write_own(prefix: Path, random: np.random.Generator, *, vocab_size: int) -> None:
    """Seven documents whose ids reach the end of the vocabulary, with a side file."""
    documents = [random.integers(vocab_size, size=size) for size in (3, 1, 5, 2, 4, 1, 6)]
    documents[1][0] = vocab_size - 1
    with IndexedWriter(prefix, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.append(document)
        writer.commit(
            DatasetMetadata(
                tokenizer="f",
                vocab_size=vocab_size,
                documents=7,
                tokens=22,
                max_token_id=vocab_size - 1,
                empty_documents=0,
                inputs=("a.jsonl",),
            )
        )


def write_foreign(prefix: Path, random: np.random.Generator, *, vocab_size: int) -> None:
    """The same without a side file: the ids themselves must give a wrong type away."""
    write_own(prefix, random, vocab_size=vocab_size)
    Path(f"{prefix}.meta.json").unlink()


def read_as_a_run_does(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(prefix)
    dataset.check_layout()
    if dataset.metadata() is None:
        dataset.max_token_id()
    return [dataset.document(number).tolist() for number in range(len(dataset))]


def read_with_a_cached_order(prefix: Path) -> list[list[int]]:
    """What a run does that finds its order in the cache: no look over all sizes, only what it reads is checked."""
    dataset = IndexedDataset(prefix)
    if dataset.metadata() is None:
        dataset.max_token_id()
    return [dataset.document(number).tolist() for number in range(len(dataset))]


def attempt(read: Reader, prefix: Path) -> tuple[list[list[int]] | None, str | None]:
    """What was read, or why it was refused; any other exception is a crash."""
    try:
        return read(prefix), None
    except DataError as error:
        return None, str(error)


def mutated(index: bytes, tokens: bytes, random: np.random.Generator) -> Iterator[tuple[bytes, bytes]]:
    """Random changes of the header, of a field, of bytes, and of both lengths."""
    fields = [(9, "<q"), (17, "<B"), (18, "<q"), (26, "<q")]
    fields += [(34 + 4 * i, "<i") for i in range(7)] + [(34 + 28 + 8 * i, "<q") for i in range(7 + 8)]
    while True:
        changed_index, changed_tokens = bytearray(index), bytearray(tokens)
        match random.integers(6):
            case 0:  # one bit of the header
                changed_index[random.integers(34)] ^= 1 << int(random.integers(8))
            case 1:  # a field becomes an extreme value
                place, kind = fields[random.integers(len(fields))]
                value = EXTREMES[random.integers(len(EXTREMES))] & ((1 << (8 * struct.calcsize(kind))) - 1)
                struct.pack_into(kind.upper(), changed_index, place, value)
            case 2:  # a field moves by a little
                place, kind = fields[random.integers(len(fields))]
                bits = 8 * struct.calcsize(kind)
                (value,) = struct.unpack_from(kind.upper(), changed_index, place)
                struct.pack_into(
                    kind.upper(), changed_index, place, (value + int(random.integers(-4, 5))) % (1 << bits)
                )
            case 3:  # up to four random bytes anywhere
                for _ in range(random.integers(1, 5)):
                    changed_index[random.integers(len(index))] = random.integers(256)
            case 4:  # the index is cut or grows
                size = int(random.integers(2 * len(index)))
                changed_index = bytearray((index + random.bytes(len(index)))[:size])
            case _:  # the tokens are cut or grow
                size = int(random.integers(2 * len(tokens)))
                changed_tokens = bytearray((tokens + random.bytes(len(tokens)))[:size])
        yield bytes(changed_index), bytes(changed_tokens)


@pytest.mark.parametrize(
    ("write", "read", "vocab_size"),
    [
        (write_own, read_as_a_run_does, 65_000),
        (write_foreign, read_as_a_run_does, 65_000),
        (write_foreign, read_as_a_run_does, 128_000),
        (write_own, read_with_a_cached_order, 65_000),
        (write_foreign, read_with_a_cached_order, 128_000),
    ],
)
def test_damage_is_refused_by_file_and_byte_or_changes_nothing(
    tmp_path: Path, write: Writer, read: Reader, vocab_size: int
) -> None:
    random = np.random.default_rng(vocab_size)
    prefix = tmp_path / "d"
    write(prefix, random, vocab_size=vocab_size)
    index_path, tokens_path = tmp_path / "d.idx", tmp_path / "d.bin"
    index, tokens = index_path.read_bytes(), tokens_path.read_bytes()
    on_disk = {index_path: index, tokens_path: tokens}
    whole = read(prefix)
    refused = 0
    mutations = mutated(index, tokens, random)
    tracemalloc.start()
    for _ in range(MUTATIONS // 5):
        changed_index, changed_tokens = next(mutations)
        for path, content in ((index_path, changed_index), (tokens_path, changed_tokens)):
            if on_disk[path] != content:
                path.write_bytes(content)
                on_disk[path] = content
        documents, refusal = attempt(read, prefix)
        refused += refusal is not None
        if refusal is None:
            assert documents == whole, f"{changed_index.hex()} reads as another dataset"
        else:
            assert NAMES_FILE_AND_OFFSET.search(refusal), refusal
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LARGEST_ALLOCATION
    assert refused > 0.8 * MUTATIONS / 5


def test_header_of_an_enormous_dataset_allocates_nothing(tmp_path: Path) -> None:
    """Counts that agree with each other but not with the file, up to what eight bytes can say."""
    (tmp_path / "d.bin").write_bytes(bytes(16))
    for count in (2**20, 2**40, 2**63 - 1, 2**64 - 1):
        (tmp_path / "d.idx").write_bytes(struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 4, count, count) + bytes(64))
        with pytest.raises(DataError, match=rf"d\.idx has 98 bytes, .*byte 18: {count} sequences"):
            IndexedDataset(tmp_path / "d")


def write_index(folder: Path, sizes: list[int], begins: list[int], entries: list[int]) -> Path:
    """A dataset of 12 tokens of two bytes with any index."""
    content = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, len(sizes), len(entries))
    content += struct.pack(f"<{len(sizes)}i", *sizes) + struct.pack(f"<{len(begins)}q", *begins)
    (folder / "d.idx").write_bytes(content + struct.pack(f"<{len(entries)}q", *entries))
    (folder / "d.bin").write_bytes(bytes(24))
    return folder / "d"


@pytest.mark.parametrize(
    ("sizes", "begins", "entries", "message"),
    [
        ([4, 8], [0, 8], [], r"d\.idx, byte 26: there are 0 document entries"),
        ([4, 8], [0, 8], [1, 2, 2], r"d\.idx, byte 58: document entry 0 is 1, and must be 0"),
        ([4, 8], [0, 8], [0, 1, 3], r"d\.idx, byte 74: document entry 2 is 3, and must be the number of sequences 2"),
        ([4, 8], [2, 8], [0, 1, 2], r"d\.idx, byte 42: document 0 begins at byte 2"),
        ([4, 8], [0, 7], [0, 1, 2], r"d\.idx, byte 50: the last document begins at byte 7"),
        ([4, -8], [0, 40], [0, 1, 2], r"d\.idx, byte 50: the last document .* has -8 tokens"),
        ([4, 8], [0, -8], [0, 1, 2], r"d\.idx, byte 50: the last document begins at byte -8"),
    ],
)
def test_contradiction_at_the_ends_of_an_index_is_found_when_it_is_opened(
    tmp_path: Path, sizes: list[int], begins: list[int], entries: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        IndexedDataset(write_index(tmp_path, sizes, begins, entries))


@pytest.mark.parametrize("block", [1, 2, 100])
@pytest.mark.parametrize(
    ("sizes", "begins", "entries", "message"),
    [
        ([4, 2, 6], [0, 10, 12], [0, 1, 2, 3], r"byte 46: document 0 .* 4 tokens .* document 1 begins at 10"),
        ([4, 3, 6], [0, 8, 12], [0, 1, 2, 3], r"byte 54: document 1 .* 3 tokens .* document 2 begins at 12"),
        ([-4, 8, 8], [0, -8, 8], [0, 1, 2, 3], r"byte 46: document 0 .* -4 tokens"),
        ([4, 2, 6], [0, 8, 12], [0, 2, 2, 3], r"byte 86: document entry 2 is 2, and must be at least 3"),
        ([4, 2, 6], [0, 8, 12], [0, 1, 4, 3, 3], r"byte 94: document entry 3 is 3, and must be at least 4"),
    ],
)
def test_contradiction_inside_an_index_is_found_by_the_whole_check(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    sizes: list[int],
    begins: list[int],
    entries: list[int],
    message: str,
) -> None:
    monkeypatch.setattr("megatron_poro.data.indexed_format._BLOCK", block)
    dataset = IndexedDataset(write_index(tmp_path, sizes, begins, entries))
    with pytest.raises(DataError, match=message):
        dataset.check_layout()


def test_documents_without_sequences_are_no_damage(tmp_path: Path) -> None:
    """Megatron's own tool writes them for empty texts."""
    dataset = IndexedDataset(write_index(tmp_path, [4, 8], [0, 8], [0, 1, 1, 2]))
    dataset.check_layout()
    assert [len(dataset.document(number)) for number in range(2)] == [4, 8]


def test_misplaced_document_is_refused_when_it_is_read(tmp_path: Path) -> None:
    dataset = IndexedDataset(write_index(tmp_path, [4, 2, 6], [0, 10, 12], [0, 1, 2, 3]))
    for number in (0, 1):
        with pytest.raises(DataError, match=rf"d\.idx, byte {46 + 8 * number}: document {number} begins"):
            dataset.document(number)
    assert len(dataset.document(2)) == 6


def test_wrong_token_type_is_known_from_the_vocabulary_of_the_side_file(tmp_path: Path) -> None:
    write_own(tmp_path / "d", np.random.default_rng(0), vocab_size=30_000)
    content = bytearray((tmp_path / "d.idx").read_bytes())
    content[17] = 3  # int16, as long as uint16
    (tmp_path / "d.idx").write_bytes(content)
    with pytest.raises(DataError, match=r"d\.idx, byte 17: .*int16, but d\.meta\.json .* 30000, stored as uint16"):
        IndexedDataset(tmp_path / "d").metadata()


def test_negative_id_is_named_by_its_byte(tmp_path: Path) -> None:
    write_foreign(tmp_path / "d", np.random.default_rng(0), vocab_size=128_000)
    content = np.fromfile(tmp_path / "d.bin", dtype="<i4")
    content[5] = -3
    content.tofile(tmp_path / "d.bin")
    with pytest.raises(DataError, match=r"d\.bin, byte 20: token id -3 is negative as int32"):
        IndexedDataset(tmp_path / "d").max_token_id()
