"""Composes a run's config with Hydra and turns it into plain dataclasses.

    overrides --Hydra--> DictConfig (keys checked) --typed--> TrainConfig (values checked) --validate--> (fits together)

Hydra is used through its compose API, not through ``@hydra.main``: no output folders, no logging set up behind the
program's back, and its errors can be answered in one sentence.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megatron_poro.config.fields import plain
from megatron_poro.config.hardware import PlanConfig
from megatron_poro.config.hydra_errors import config_error
from megatron_poro.config.paths import config_dir
from megatron_poro.config.run import TrainConfig
from megatron_poro.config.store import register_schemas
from megatron_poro.config.typed import typed
from megatron_poro.errors import ConfigError


def load_config(
    overrides: Sequence[str] = (), *, config_name: str = "train", config_dirs: Sequence[Path] = ()
) -> TrainConfig:
    """Composes a config and checks each of its values; ``validate`` then checks that they fit together.

    Args:
        overrides: Hydra overrides, such as ``experiment=smoke_cpu`` or ``parallel.tensor=2``.
        config_name: primary config, a file name without its suffix.
        config_dirs: further folders of configs. They add to the packaged ones and cannot replace a file of these.

    Raises:
        ConfigError: for everything that can be wrong with the above; names the key, its value and what to do.
    """
    return from_hydra(compose(overrides, config_name=config_name, config_dirs=config_dirs))


def load_plan(overrides: Sequence[str] = (), *, config_dirs: Sequence[Path] = ()) -> PlanConfig:
    """Composes what a plan takes besides a run, such as ``hardware=lumi_g nodes=128``; as :func:`load_config`."""
    values = OmegaConf.to_container(compose(overrides, config_name="plan", config_dirs=config_dirs), resolve=True)
    assert isinstance(values, dict), f"the root of a config is a mapping, not {type(values).__name__}"
    return typed(PlanConfig, values)


def compose(
    overrides: Sequence[str] = (), *, config_name: str = "train", config_dirs: Sequence[Path] = ()
) -> DictConfig:
    """Composes a config as written: interpolations are not yet resolved and ``10B`` is still a text.

    Arguments and errors are those of :func:`load_config`.
    """
    for folder in config_dirs:
        if not folder.is_dir():
            raise ConfigError(
                f"--config-dir {folder} is not a folder; give the one that holds your experiment/ folder."
            )
    register_schemas()
    with _added_folders(config_dirs), hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            return hydra.compose(config_name, list(overrides))
        except Exception as error:  # Hydra answers odd overrides with whatever Python raises inside it
            raise config_error(error) from error


def from_hydra(config: DictConfig) -> TrainConfig:
    """Resolves interpolations and turns a composed config into dataclasses.

    Raises:
        ConfigError: if a value is missing or has the wrong type, or an interpolation leads nowhere.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise config_error(error) from error
    assert isinstance(values, dict), f"the root of a config is a mapping, not {type(values).__name__}"
    return typed(TrainConfig, values)


def to_yaml(config: TrainConfig) -> str:
    """The resolved config as YAML text: every key, counts as integers; ``from_yaml`` gives the same config back."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))


def from_yaml(path: Path) -> TrainConfig:
    """Reads a resolved config, such as the ``resolved.yaml`` of a run folder.

    Raises:
        ConfigError: if the file is missing or is not the config of a run.
    """
    try:
        return from_hydra(_dict_config(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _dict_config(path: Path) -> DictConfig:
    try:
        loaded: Any = OmegaConf.load(path)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror}); give the resolved.yaml of a run folder.") from error
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise config_error(error) from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError("is a list, not the config of a run; give the resolved.yaml of a run folder.")
    return loaded


class _AddedFolders(SearchPathPlugin):
    """Puts folders behind the packaged one on Hydra's search path.

    Not by ``hydra.searchpath``: Hydra looks the primary config up before it reads that key, so that a user's folder
    could hold experiments but no primary.
    """

    folders: ClassVar[tuple[Path, ...]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.append(provider="--config-dir", path=f"file://{folder.resolve()}")


@contextmanager
def _added_folders(folders: Sequence[Path]) -> Iterator[None]:
    Plugins.instance().register(_AddedFolders)
    _AddedFolders.folders = tuple(folders)
    try:
        yield
    finally:
        _AddedFolders.folders = ()
