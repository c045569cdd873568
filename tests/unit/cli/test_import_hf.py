"""``poro import``: an export goes back into a run."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_poro.cli.export import main as export_main
from megatron_poro.cli.import_hf import main
from megatron_poro.errors import CheckpointError
from tests.support.megatron import write_megatron
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


def test_a_megatron_checkpoint_is_told_by_its_files_and_its_copies_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_bloom(tmp_path / "run" / "checkpoints")
    export_main([str(tmp_path / "run"), "--no-parity", "--output", str(tmp_path / "model")])
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    drift = {("ln_f.weight", 3): 0.5, ("h.0.input_layernorm.bias", 6): 4.0}
    write_megatron(tmp_path / "theirs", weights, tensor_size=7, vocab_multiple=7, drift=drift)
    capsys.readouterr()
    checkpoints = tmp_path / "other" / "checkpoints"
    words = [str(tmp_path / "theirs"), "--config", str(tmp_path / "model"), "--output", str(checkpoints)]
    assert main(words) == 0
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert first.startswith("blocks.0.attention_norm.bias: its copies differ by up to 4")
    assert second.startswith("final_norm.weight: its copies differ by up to 0.5")
    assert third == (
        "7 tensor ranks: 16 parameters are on all of them and were averaged, 2 of these differ; 6 padding rows of the "
        "embedding dropped"
    )
    assert last.startswith(f"{checkpoints / 'step_00000000'}: 29 tensors, 2 layers")
    with pytest.raises(CheckpointError, match=r"--config .*model is for a Megatron-DeepSpeed checkpoint"):
        main([*words, "--format", "huggingface"])
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        main([words[0], *words[-2:], "--format", "huggingface"])
