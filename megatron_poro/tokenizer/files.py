"""The three files of a tokenizer folder: reading any, writing the form that every transformers reads.

Two things that newer libraries write stop older ones: merges as pairs (unreadable before tokenizers 0.20) and the class
name ``TokenizersBackend`` with its keys (unknown to transformers 4.x). What is written here has neither.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_poro.errors import DataError

DEFINITION = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"

_KEYS_OF_5X_ONLY = ("backend", "is_local", "local_files_only")


def read(folder: Path) -> tuple[str, dict[str, Any]]:
    """Text of ``tokenizer.json``, and the settings with the special tokens of ``special_tokens_map.json`` filled in.

    Raises:
        DataError: if the folder or ``tokenizer.json`` is missing, or a file is not what its name says.
    """
    if not folder.is_dir():
        raise DataError(
            f"tokenizer folder {folder} does not exist: train one with `poro tokenizer train --output {folder}`."
        )
    if not (folder / DEFINITION).is_file():
        raise DataError(
            f"tokenizer folder {folder} has no {DEFINITION}: it is not a tokenizer, or was not written to the end."
        )
    definition = _read_text(folder / DEFINITION)
    _parse(definition, folder / DEFINITION)
    settings: dict[str, Any] = {}
    for name in (SPECIAL_MAP, SETTINGS):
        if (folder / name).is_file():
            settings.update(_parse(_read_text(folder / name), folder / name))
    return definition, settings


def write(folder: Path, definition: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Writes the three files, each by rename, the definition last.

    Raises:
        DataError: if the disk refuses.
    """
    settings = portable_settings(settings)
    special_map = {
        key: settings[key] for key in settings if key.endswith("_token") or key == "additional_special_tokens"
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / SETTINGS, settings)
        _write_json(folder / SPECIAL_MAP, special_map)
        _write_json(folder / DEFINITION, portable_definition(definition))
    except OSError as error:
        raise DataError(f"cannot write a tokenizer into {folder}: {error.strerror or error}.") from error


def portable_definition(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The same tokenizer with merges as ``"a b"`` strings, unless a piece itself holds a space."""
    portable = dict(definition)
    model = portable.get("model")
    if isinstance(model, dict) and isinstance(model.get("merges"), list):
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        if not any(" " in piece for merge in merges for piece in merge):
            portable["model"] = {**model, "merges": [" ".join(merge) for merge in merges]}
    return portable


def portable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings without what only transformers 5.x understands."""
    portable = {key: value for key, value in settings.items() if key not in _KEYS_OF_5X_ONLY}
    if portable.get("tokenizer_class") in (None, "TokenizersBackend"):
        portable["tokenizer_class"] = "PreTrainedTokenizerFast"
        # Without it, generate() of transformers 4.x is handed token_type_ids and refuses them.
        portable.setdefault("model_input_names", ["input_ids", "attention_mask"])
    return dict(sorted(portable.items()))


def token_text(value: object) -> str | None:
    """A special token as settings spell it: a string, or an object whose ``content`` is the string."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch or train the tokenizer again.") from error


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}): fetch or train the tokenizer again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not a JSON object: it is not a file of a tokenizer.")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
