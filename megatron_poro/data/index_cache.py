"""Arrays that are expensive to make and cheap to map: built once, then shared by all processes through the page cache.

An entry is found by the hash of everything it was made from, so nothing is ever out of date: other inputs are another
entry. Builders may race (two jobs, or all ranks at once): each writes complete files with the same content, and the
record that makes an entry exist is renamed into place last.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.durable import durable_write, refusals_as_data_errors
from megatron_poro.errors import DataError

Arrays = Mapping[str, NDArray[Any]]


class IndexCache:
    """A folder of entries: ``<name>-<hash>.json`` says what one is, ``<name>-<hash>.<array>.npy`` hold its arrays."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def arrays(self, name: str, facts: Mapping[str, Any], build: Callable[[], Arrays]) -> Arrays:
        """The arrays made from ``facts``, memory-mapped and read-only; calls ``build`` if they are not there.

        Args:
            name: for people who look into the folder; not part of the identity.
            facts: everything that ``build``'s result depends on, as JSON values.
            build: makes the arrays; none may be empty.

        Raises:
            DataError: if the folder cannot be written, or an entry is damaged.
        """
        record = {"facts": dict(facts)}
        text = json.dumps(record, sort_keys=True, indent=1)
        stem = f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
        if not self._record_path(stem).exists():
            self._write(stem, text, build())
        return self._open(stem)

    def _write(self, stem: str, text: str, arrays: Arrays) -> None:
        for name, array in arrays.items():
            assert array.size, f"array {name!r} of {stem} is empty and cannot be memory-mapped"
            path = self._array_path(stem, name)
            with durable_write(path) as file, refusals_as_data_errors(path):
                np.save(file.file, array)
        with durable_write(self._record_path(stem)) as file:
            file.write(json.dumps({**json.loads(text), "arrays": sorted(arrays)}, indent=1).encode())

    def _open(self, stem: str) -> Arrays:
        path = self._record_path(stem)
        try:
            names = json.loads(path.read_text(encoding="utf-8"))["arrays"]
            mapped = {}
            for name in names:
                path = self._array_path(stem, name)
                mapped[name] = np.asarray(np.load(path, mmap_mode="r"))  # plain arrays: memmap objects slice slowly
            return mapped
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"cached index {path} is damaged ({error}). Delete {self.folder / stem}.* and start again: "
                "it is then built anew."
            ) from error

    def _record_path(self, stem: str) -> Path:
        return self.folder / f"{stem}.json"

    def _array_path(self, stem: str, name: str) -> Path:
        return self.folder / f"{stem}.{name}.npy"
