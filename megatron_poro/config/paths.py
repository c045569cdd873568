"""Where the YAML files are: in the installed package, or in the checkout beside it."""

from pathlib import Path

from megatron_poro.errors import ConfigError

CARDS_FOLDER = "publish"
"""Folder beside the config groups that is none: what ``poro publish`` says of a model."""


def config_dir() -> Path:
    """The folder that holds ``train.yaml`` and the config groups.

    A wheel carries a copy inside the package; a checkout keeps the folder at its root. The search starts from this
    file, not from ``importlib.resources``: an editable install leaves a second copy in site-packages, which goes stale.

    Raises:
        ConfigError: if neither place holds it.
    """
    package = Path(__file__).resolve().parent.parent
    places = (package / "configs", package.parent / "configs")
    for place in places:
        if (place / "train.yaml").is_file():
            return place
    raise ConfigError(
        f"train.yaml is neither in {places[0]} (installed) nor in {places[1]} (checkout). Install the package again, "
        "or run from a complete checkout."
    )
