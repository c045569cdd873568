"""BLOOM's vocabulary by gigabpe, a compiled trainer: the merges of the `tokenizers` trainer in a fraction of the time.

gigabpe knows only its own splits, one of them at white space. A byte-level vocabulary has no white space, so texts are
split and spelt in bytes here and handed over as words with spaces between them. It has a single release so far: that
one is asked for by number, and a test compares its merges.
"""

import importlib
import importlib.metadata
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from tokenizers.models import BPE

from megatron_poro.errors import ConfigError, DataError
from megatron_poro.tokenizer.pieces import spell_apart

VERSION = "0.1.0"
"""The release of gigabpe that is known to give the same merges."""

_BATCH_CHARACTERS = 1 << 20


def learn_merges(
    texts: Iterable[str],
    vocab_size: int,
    *,
    alphabet: Sequence[str],
    special_tokens: Sequence[str],
    threads: int | None = None,
) -> BPE:
    """Learns what `tokenizers.trainers.BpeTrainer` learns of the same texts behind BLOOM's split.

    The split texts lie in the folder for temporary files (``TMPDIR``) while this runs, about 1.2 times their size.

    Args:
        texts: read once.
        vocab_size: ids, special tokens and alphabet included.
        alphabet: characters that get an id whether or not they occur.
        special_tokens: have the first ids, in their order.
        threads: that count words; None for one on each core. The result is the same.

    Raises:
        ConfigError: if gigabpe is not installed in the release known to be right.
        DataError: if a text is not valid Unicode, or the disk refuses.
    """
    gigabpe = _gigabpe()
    try:
        with tempfile.TemporaryDirectory(prefix="tokenizer-") as folder:
            words, output = Path(folder) / "words.txt", Path(folder) / "tokenizer.json"
            _write_words(words, texts, alphabet)
            gigabpe.train_tokenizer(
                [str(words)],
                vocab_size=vocab_size,
                output=str(output),
                special_tokens=list(special_tokens),
                pretokenizer="whitespace",
                threads=threads,
            )
            model = json.loads(output.read_text(encoding="utf-8"))["model"]
    except OSError as error:
        raise DataError(f"cannot hold the words to be trained on: {error}. Set TMPDIR to a larger disk.") from error
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return BPE(vocab=model["vocab"], merges=[(left, right) for left, right in merges])


def _gigabpe() -> ModuleType:
    advice = f"Install it by `pip install gigabpe=={VERSION}`, or use --trainer tokenizers, which needs nothing more."
    try:
        found = importlib.metadata.version("gigabpe")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"--trainer gigabpe: it is not installed. {advice}") from error
    if found != VERSION:
        raise ConfigError(f"--trainer gigabpe: release {found} is installed, {VERSION} is known to be right. {advice}")
    return importlib.import_module("gigabpe")


def _write_words(path: Path, texts: Iterable[str], alphabet: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(" ".join(alphabet) + "\n")  # words of one character join the alphabet and add no pair
        for batch in _batches(texts):
            try:
                file.write(spell_apart(batch) + "\n")
            except UnicodeEncodeError as error:
                raise DataError(f"a text holds half of a surrogate pair ({error.reason}): replace it.") from error


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = list[str](), 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch
