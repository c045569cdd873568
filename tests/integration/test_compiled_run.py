"""A run with compiled blocks says what that has cost, and goes on as if it had never stopped."""

from pathlib import Path

import pytest
import torch

from megatron_poro.cli.train import main
from tests.integration.toy import STEPS, RunOnDisk, ToyCorpora, assert_same_values


def test_a_compiled_run_resumes_bitwise_and_tells_what_compiling_took(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = "engine.compile=true"
    assert main(corpora.arguments(tmp_path, compiled, name="whole")) == 0
    told = capsys.readouterr().err
    assert told.count("engine.compile=true compiled its blocks") == 1
    assert main(corpora.arguments(tmp_path, compiled, "run.stop_after_steps=3", name="parts")) == 0
    torch.compiler.reset()  # what another process would begin with
    assert main(corpora.arguments(tmp_path, compiled, name="parts")) == 0
    assert_same_values(RunOnDisk(tmp_path, "parts"), RunOnDisk(tmp_path, "whole"), STEPS)
    capsys.readouterr()
    assert main(corpora.arguments(tmp_path, "run.stop_after_steps=1", name="plain")) == 0
    assert "compiled its blocks" not in capsys.readouterr().err
