"""What is looked at before an engine is built."""

import importlib.metadata
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_poro.config.run import EngineKind
from megatron_poro.engine.build import build_engine
from megatron_poro.errors import EngineError
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.train.next_token import NextToken
from tests.support.tiny import CPU, tiny_config


def test_an_engine_refuses_the_deepspeed_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(*_: Any, **__: Any) -> None:
        pytest.fail("an engine was built")

    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"deepspeed": "0.19.2"}[name])
    monkeypatch.setitem(
        sys.modules,
        "megatron_poro.engine.pipeline_engine",
        SimpleNamespace(PipelineEngine=engine),
    )
    config = tiny_config(kind=EngineKind.DEEPSPEED)
    with pytest.raises(EngineError, match=r"deepspeed 0\.19\.2 is installed, at least 0\.19\.3 is needed"):
        build_engine(config, groups=ParallelGroups.single(), objective=NextToken, num_sources=2, device=CPU)
