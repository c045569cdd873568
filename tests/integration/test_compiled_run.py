"""A run with compiled blocks says what that has cost, and goes on as if it had never stopped.

Each command has a process of its own: a compiler leaves threads and helpers behind in the one that it worked in, and
the test runner forks from its own.
"""

from pathlib import Path

import pytest

from tests.integration.toy import STEPS, RunOnDisk, ToyCorpora, assert_same_values, launch


def test_a_compiled_run_resumes_bitwise_and_tells_what_compiling_took(
    corpora: ToyCorpora, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    compiled = "engine.compile=true"
    assert launch(corpora.arguments(tmp_path, compiled, name="whole"), world=1) == [0]
    told = capfd.readouterr().err
    assert told.count("engine.compile=true compiled its blocks") == 1
    assert launch(corpora.arguments(tmp_path, compiled, "run.stop_after_steps=3", name="parts"), world=1) == [0]
    assert launch(corpora.arguments(tmp_path, compiled, name="parts"), world=1) == [0]
    assert_same_values(RunOnDisk(tmp_path, "parts"), RunOnDisk(tmp_path, "whole"), STEPS)
    capfd.readouterr()
    assert launch(corpora.arguments(tmp_path, "run.stop_after_steps=1", name="plain"), world=1) == [0]
    assert "compiled its blocks" not in capfd.readouterr().err
