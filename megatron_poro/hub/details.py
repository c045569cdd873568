"""What a model card needs and no run knows: licence, languages, people, machines, prose. From a YAML file.

A file is laid over ``configs/publish/default.yaml``, which has the prose that suits any base model.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING

from megatron_poro.config.fields import schema_fields
from megatron_poro.config.paths import CARDS_FOLDER, config_dir
from megatron_poro.config.typed import enumerate_words, nearest, typed
from megatron_poro.errors import ConfigError

DEFAULT = "default"
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_DATASET = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(kw_only=True)
class DatasetDetails:
    """One row of the dataset table."""

    sources: list[str] = field(default_factory=list)
    """Sources of the mixture that the row adds up, by their names in data.train."""

    title: str = MISSING
    """What it is called."""

    notes: str = ""
    """What is to be known of it."""

    url: str | None = None
    """Where it is described."""


@dataclass(kw_only=True)
class SectionDetails:
    """A section of one's own."""

    title: str = MISSING
    """Its heading."""

    text: str = MISSING
    """Markdown."""


@dataclass(kw_only=True)
class CardDetails:
    """Everything on a card that does not come from the run."""

    title: str | None = None
    """Name of the model; null takes that of the repository."""

    summary: str | None = None
    """What the model is, in a paragraph or more of Markdown."""

    license: str | None = None
    """Identifier that the Hub knows, such as apache-2.0; other needs license_name."""

    license_name: str | None = None
    """Name of a licence that the Hub does not know."""

    license_link: str | None = None
    """Where the text of the licence is."""

    languages: list[str] = field(default_factory=list)
    """ISO 639 codes of what the model speaks, such as fi and en."""

    tags: list[str] = field(default_factory=list)
    """Tags at the Hub."""

    hub_datasets: list[str] = field(default_factory=list)
    """Datasets at the Hub that the model was trained on, such as bigcode/starcoderdata."""

    developed_by: str | None = None
    """Who made it; Markdown."""

    contact: str | None = None
    """Where to write to."""

    hardware: str | None = None
    """The machine, in sentences; Markdown. The number of processes, their layout and their speed are the run's."""

    tokenizer: str | None = None
    """What the tokenizer was trained on, in sentences."""

    dataset: str | None = None
    """What stands above the dataset table."""

    datasets: list[DatasetDetails] = field(default_factory=list)
    """Rows of the dataset table; a source that is in none of them gets a row of its own."""

    intended_use: str | None = None
    """Markdown."""

    limitations: str | None = None
    """Markdown."""

    sections: list[SectionDetails] = field(default_factory=list)
    """Further sections, before the licence."""

    template: str | None = None
    """A file that orders the sections, beside this one; null takes the packaged one."""


def read_details(choice: str | None) -> CardDetails:
    """Reads a card file over the packaged defaults.

    Args:
        choice: a path, or the name of a packaged file; None takes the defaults alone.

    Raises:
        ConfigError: if there is no such file, or something in it is wrong.
    """
    packaged = config_dir() / CARDS_FOLDER
    values = _load(packaged / f"{DEFAULT}.yaml")
    path = packaged / f"{DEFAULT}.yaml"
    if choice is not None:
        path = _locate(choice, packaged)
        values = {**values, **_load(path)}
    details = _check(typed(CardDetails, values), path)
    if details.template is None:
        return details
    return dataclasses.replace(details, template=str(path.parent / details.template))


def _locate(choice: str, packaged: Path) -> Path:
    if Path(choice).is_file():
        return Path(choice)
    names = sorted(path.stem for path in packaged.glob("*.yaml"))
    if choice in names:
        return packaged / f"{choice}.yaml"
    raise ConfigError(f"--card {choice} is neither a file nor one of {enumerate_words(names)}.")


def _load(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a card: it must hold keys such as title and license.")
    _require_known(CardDetails, values, path)
    for key, schema in (("datasets", DatasetDetails), ("sections", SectionDetails)):
        for entry in values.get(key) or []:
            if isinstance(entry, Mapping):
                _require_known(schema, entry, path)
    return values


def _require_known(schema: type, values: Mapping[Any, Any], path: Path) -> None:
    known = [entry.name for entry in schema_fields(schema)]
    for key in values:
        if key not in known:
            close = nearest(str(key), known)
            instead = f"did you mean {close}?" if close else f"a card has {enumerate_words(known, 'and')}."
            raise ConfigError(f"{path}: {key} is not a key of a card; {instead}")


def _check(details: CardDetails, path: Path) -> CardDetails:
    """What the Hub would refuse, before anything is uploaded."""
    for key, words, form, example in (
        ("languages", details.languages, _LANGUAGE, "fi or en"),
        ("license", [details.license] if details.license else [], _LICENSE, "apache-2.0"),
        ("hub_datasets", details.hub_datasets, _DATASET, "bigcode/starcoderdata"),
    ):
        for word in words:
            if not form.fullmatch(word):
                raise ConfigError(
                    f"{path}: {key} has {word!r}, which the Hub does not accept; write it like {example}."
                )
    if details.license == "other" and not details.license_name:
        raise ConfigError(f"{path}: license=other needs license_name, and license_link if its text is somewhere.")
    return details
