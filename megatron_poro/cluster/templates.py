"""The job scripts: where they are, and how one becomes a script that can be submitted.

A template is a shell script that is right as it stands, apart from words like ``@JOB_FOLDER@`` and one line
``#SBATCH @OPTIONS@``. Only paths, names of the cluster and the words of a command are put in; what a run is, is in its
config.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_poro.errors import ConfigError

_WORD = re.compile(r"@([A-Z_]+)@")
_OPTIONS_LINE = "#SBATCH @OPTIONS@"


def slurm_folder() -> Path:
    """The folder of templates: in the installed package, or in the checkout beside it.

    Raises:
        ConfigError: if neither place holds it.
    """
    package = Path(__file__).resolve().parent.parent
    places = (package / "slurm", package.parent / "slurm")
    for place in places:
        if (place / "train.sbatch").is_file():
            return place
    raise ConfigError(
        f"train.sbatch is neither in {places[0]} (installed) nor in {places[1]} (checkout). Install the package again, "
        "or run from a complete checkout."
    )


def checkout() -> Path | None:
    """The checkout that this package is run from; ``None`` if it is installed."""
    root = Path(__file__).resolve().parent.parent.parent
    return root if (root / "slurm" / "train.sbatch").is_file() and (root / "pyproject.toml").is_file() else None


def site_file(site: str, folders: Sequence[Path] = ()) -> Path:
    """The shell file of a cluster: ``sites/<site>.sh``, packaged or below one of the folders.

    Raises:
        ConfigError: if there is none.
    """
    places = [folder / "sites" / f"{site}.sh" for folder in (slurm_folder(), *folders)]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"cluster.site={site}: there is no {' nor '.join(map(str, places))}. Copy sites/generic.sh to a folder sites "
        "below a --config-dir and fill it in."
    )


def render(template: str, *, options: Sequence[str], words: Mapping[str, object], raw: Mapping[str, str]) -> str:
    """Fills in a template.

    Args:
        template: file name of one in :func:`slurm_folder`.
        options: options of sbatch, one ``#SBATCH`` line each.
        words: single words of shell, by placeholder; quoted here.
        raw: text that is put in as it is.
    """
    text = (slurm_folder() / template).read_text(encoding="utf-8")
    text = text.replace(_OPTIONS_LINE, "\n".join(f"#SBATCH {option}" for option in options))
    values = {**{name: shlex.quote(str(word)) for name, word in words.items()}, **raw}

    def value(match: re.Match[str]) -> str:
        assert match[1] in values, f"{template}: nothing is known for {match[0]}"
        return values[match[1]]

    return _WORD.sub(value, text)
