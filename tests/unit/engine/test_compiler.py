"""A compiler that is missing is named before anything is built."""

from pathlib import Path

import pytest
import torch

from megatron_poro.engine.compiler import require_compiler
from megatron_poro.errors import ConfigError


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"engine.compile=true needs a C\+\+ compiler on a CPU, and g\+\+ was not"):
        require_compiler(torch.device("cpu"))
    mine = tmp_path / "mine++"
    mine.touch(mode=0o755)
    monkeypatch.setenv("CXX", "mine++")
    require_compiler(torch.device("cpu"))


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"engine.compile=true needs the package triton"):
        require_compiler(torch.device("cuda"))
