"""``poro ckpt``: what it prints, and the status of ``verify``."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_poro.cli.ckpt import main
from megatron_poro.errors import CheckpointError
from tests.unit.checkpoint.bloom_checkpoint import save_bloom


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step, milestone in ((5, "1k"), (10, None)):
        save_bloom(tmp_path / "run" / "checkpoints", step, milestone=milestone)
    return tmp_path / "run"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_ls_has_a_line_for_each_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step_00000007").mkdir()
    (run / "checkpoints" / "step_00000010" / "__0_0.distcp").write_bytes(b"x")
    assert main(["ls", str(run)]) == 0
    head, first, second, third = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "samples", "tokens", "milestone", "size", "created", "state"]
    assert first.split()[:4] == ["5", "20", "320", "1k"]
    assert first.endswith("2026-01-01T00:00:00+00:00  complete")
    assert second.startswith("7 ")
    assert "damaged: manifest.json is missing" in second
    assert "damaged: __0_0.distcp has 1 bytes, its manifest says" in third
    assert third.endswith(", latest")


@pytest.mark.parametrize("of", [".", "checkpoints", "checkpoints/step_00000010"])
def test_inspect_prints_the_state_and_every_tensor(run: Path, capsys: pytest.CaptureFixture[str], of: str) -> None:
    assert main(["inspect", str(run / of)]) == 0
    out = capsys.readouterr().out
    assert "step            10 (10 of the optimizer)" in out
    assert "parameters      92,680 in 29 tensors" in out
    assert "written by      1 process (tensor=1 pipeline=1 data=1)" in out
    assert ["blocks.1.attention.qkv.weight", "168", "x", "56", "9,408"] in [line.split() for line in out.splitlines()]
    assert "  hidden_size: 56" in out


def test_verify_says_valid_with_status_0(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step_00000005: valid, 6 files, 1.")
    assert second.startswith("step_00000010: valid")


@pytest.mark.parametrize(
    "name", ["__0_0.distcp", ".metadata", "meta.json", "manifest.json", "tokenizer/tokenizer.json"]
)
def test_verify_names_a_flipped_bit_with_status_1(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    flip_a_bit(run / "checkpoints" / "step_00000005" / name)
    assert main(["verify", str(run)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"step_00000005: DAMAGED: {name} ")
    assert second.startswith("step_00000010: valid")
    assert main(["verify", str(run / "checkpoints" / "step_00000005")]) == 1
    assert main(["verify", str(run / "checkpoints" / "step_00000010")]) == 0


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    for verb in ("ls", "inspect", "verify"):
        with pytest.raises(CheckpointError, match="has no checkpoints"):
            main([verb, str(tmp_path)])


def test_a_run_without_a_complete_checkpoint_is_named(run: Path) -> None:
    for step in (5, 10):
        (run / "checkpoints" / f"step_{step:08d}" / "meta.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* is complete \(step_00000010: meta.json is missing; "
    ):
        main(["inspect", str(run)])


def test_ls_and_verify_do_without_torch(run: Path) -> None:
    """A login node answers at once, also where torch is not installed."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from megatron_poro.cli.ckpt import main\n"
        f"sys.exit(main(['ls', {str(run)!r}]) or main(['verify', {str(run)!r}]))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
