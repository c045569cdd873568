"""The words that choose a config on a command line, the same for every verb that takes one."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from megatron_poro.config.load import compose, from_hydra
from megatron_poro.config.run import TrainConfig


@dataclass(frozen=True)
class Selection:
    """Which config a command line asks for.

    Attributes:
        overrides: Hydra overrides, ``experiment=smoke_cpu`` among them.
        config_name: primary config.
        config_dirs: folders that add to the packaged configs.
    """

    overrides: tuple[str, ...] = ()
    config_name: str = "train"
    config_dirs: tuple[Path, ...] = ()

    def compose(self) -> DictConfig:
        """The config as written; raises ``ConfigError`` as :func:`megatron_poro.config.load.compose` does."""
        return compose(self.overrides, config_name=self.config_name, config_dirs=self.config_dirs)

    def load(self) -> TrainConfig:
        """The config as dataclasses; raises ``ConfigError`` as :func:`megatron_poro.config.load.load_config` does."""
        return from_hydra(self.compose())


def add_selection_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the overrides and the options that say where configs are."""
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="experiment=NAME, GROUP=FILE or any config key"
    )
    parser.add_argument(
        "--config-dir", action="append", type=Path, default=[], metavar="DIR", help="a folder with configs of your own"
    )
    parser.add_argument("-cn", "--config-name", default="train", metavar="NAME", help="primary config (train)")


def parse_selection(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Like ``parser.parse_args``, which stops reading overrides at the first option that stands between them."""
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def selection(arguments: argparse.Namespace) -> Selection:
    """What the arguments of :func:`add_selection_arguments` chose."""
    return Selection(tuple(arguments.overrides), arguments.config_name, tuple(arguments.config_dir))
