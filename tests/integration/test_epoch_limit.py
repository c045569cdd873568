"""``data.max_epochs`` holds where it matters: a run that would read a source more often does not start."""

from pathlib import Path

import pytest

from megatron_poro.cli.data import main as data_main
from megatron_poro.cli.train import main
from tests.integration.toy import ToyCorpora


def test_run_beyond_the_stated_epochs_is_refused_before_it_leaves_a_checkpoint(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = corpora.arguments(tmp_path, "data.max_epochs=0.01", f"data.index_cache={tmp_path / 'index'}")
    assert main(arguments) == 2
    assert "data.max_epochs=0.01, but finnish would be read" in capsys.readouterr().err
    assert not (tmp_path / "index").exists()
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_plan_refuses_what_training_refuses(
    corpora: ToyCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data_main(["plan", *corpora.arguments(tmp_path, "data.max_epochs=0.01")]) == 2
    assert "data.max_epochs=0.01, but finnish would be read" in capsys.readouterr().err
    assert data_main(["plan", *corpora.arguments(tmp_path, "data.max_epochs=null")]) == 0
