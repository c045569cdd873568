"""Whether this machine can compile what ``engine.compile=true`` would."""

import importlib.util
import os
import shutil

import torch

from megatron_poro.errors import ConfigError


def require_compiler(device: torch.device) -> None:
    """Refuses ``engine.compile=true`` where nothing can compile.

    Raises:
        ConfigError: naming the compiler that is missing.
    """
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")  # as torch chooses it on Linux
        if shutil.which(compiler) is None:
            raise ConfigError(
                f"engine.compile=true needs a C++ compiler on a CPU, and {compiler} was not found. Install one, name "
                "yours in the environment variable CXX, or set engine.compile=false."
            )
    elif importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "engine.compile=true needs the package triton on a GPU, and it is not installed. Install the one that "
            "belongs to this torch, or set engine.compile=false."
        )
