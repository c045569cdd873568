"""``poro import``: an export goes back into a run."""

from pathlib import Path

import pytest

from megatron_poro.cli.export import main as export_main
from megatron_poro.cli.import_hf import main
from megatron_poro.errors import CheckpointError
from tests.unit.checkpoint.bloom_checkpoint import save_bloom


def test_an_export_becomes_step_0_of_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_bloom(tmp_path / "run" / "checkpoints")
    export_main([str(tmp_path / "run"), "--no-parity", "--output", str(tmp_path / "model")])
    capsys.readouterr()
    checkpoints = tmp_path / "other" / "checkpoints"
    assert main([str(tmp_path / "model"), "--output", str(checkpoints)]) == 0
    assert capsys.readouterr().out == (
        f"{checkpoints / 'step_00000000'}: 29 tensors, 2 layers, hidden size 56, 7 heads, vocabulary 281\n"
    )
    assert export_main([str(tmp_path / "other")]) == 0  # proven


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json cannot be read .*it is not a Hugging Face model"):
        main([str(tmp_path), "--output", str(tmp_path / "checkpoints")])
