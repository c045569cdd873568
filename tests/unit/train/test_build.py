"""A request to stop that comes while a run is being built."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.cli.train import main
from megatron_poro.train import build
from megatron_poro.train.exit_code import ExitCode
from tests.integration.toy import ToyCorpora


@pytest.mark.parametrize(
    ("meanwhile", "next_wait"), [("_open_mixture", "build_engine"), ("prove_gradients", "restore")]
)
def test_a_signal_ends_a_run_before_the_next_thing_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str, next_wait: str
) -> None:
    original = getattr(build, meanwhile)

    def signalled(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(build, meanwhile, signalled)
    monkeypatch.setattr(build, next_wait, lambda *_, **__: pytest.fail(f"{next_wait} has begun"))
    assert main(ToyCorpora.make(tmp_path / "corpora").arguments(tmp_path / "runs")) == ExitCode.STOPPED
