"""``poro ckpt``: what it prints, to people and to scripts, and with which status."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.cli.ckpt import main
from megatron_poro.config.run import Precision
from megatron_poro.engine.engine import Fragment, FragmentKind
from megatron_poro.errors import CheckpointError, ConfigError
from tests.unit.checkpoint.bloom_checkpoint import TOKENIZER, BloomEngine, bloom_state, save_bloom


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
    assert first.startswith("step_00000005: valid, 7 files, 1.")
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


def printed_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """The status of a command and the JSON it printed."""
    status = main([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_ls_and_verify_tell_scripts_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_bit(run / "checkpoints" / "step_00000005" / "__0_0.distcp")
    status, (first, second) = printed_json(capsys, "ls", str(run))
    assert status == 0
    assert (first["step"], first["milestone"], first["problems"], first["latest"]) == (5, "1k", [], False)
    assert (second["step"], second["samples"], second["tokens"], second["latest"]) == (10, 40, 640, True)
    status, (first, second) = printed_json(capsys, "verify", str(run))
    assert status == 1
    assert first["problems"][0].startswith("__0_0.distcp does not have the checksum")
    assert second["problems"] == []


def test_inspect_tells_scripts_the_state_and_the_shapes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = printed_json(capsys, "inspect", str(run))
    assert status == 0
    assert told["state"]["step"] == 10
    assert told["tensors"]["blocks.1.attention.qkv.weight"] == [168, 56]


def test_diff_of_a_checkpoint_with_itself_is_empty_with_status_0(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(run / "checkpoints" / "step_00000005")
    assert main(["diff", path, path]) == 0
    assert capsys.readouterr().out == "87 tensors, 0 differ\n"


def test_diff_tells_state_settings_and_each_tensor_by_how_much(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Changed(BloomEngine):
        def fragments(self) -> Iterator[Fragment]:
            for fragment in super().fragments():
                if fragment.name == "final_norm.bias" and fragment.kind is FragmentKind.MASTER:
                    flat = fragment.flat.clone()
                    flat[3] += 0.25
                    fragment = replace(fragment, flat=flat)
                if fragment.name != "final_norm.weight":
                    yield fragment

    state = bloom_state(12, precision=Precision.FP32)
    other = save(CheckpointStore(tmp_path / "other"), Changed(), state, tokenizer=TOKENIZER)
    arguments = ["diff", str(run / "checkpoints" / "step_00000010"), str(other)]
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "state   step: 10 -> 12" in lines
    assert "config  engine.precision: bf16 -> fp32" in lines
    assert "tensor  master.final_norm.bias: largest difference 2.500e-01, 1 of 56 elements differ" in lines
    assert "tensor  exp_avg.final_norm.weight: 56 -> (absent)" in lines
    assert lines[-1] == "87 tensors, 4 differ"
    status, told = printed_json(capsys, *arguments)
    assert status == 1
    assert {one["key"]: one["largest"] for one in told["tensors"]}["master.final_norm.bias"] == 0.25
    assert {"key": "step", "left": 10, "right": 12} in told["state"]


def test_prune_keeps_the_newest_and_the_milestones(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (15, 20):
        save_bloom(run / "checkpoints", step)
    arguments = ["prune", str(run), "--keep", "1"]
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 to remove, 2 kept"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
    status, told = printed_json(capsys, *arguments)
    assert status == 0
    assert [Path(path).name for path in told["removed"]] == ["step_00000015", "step_00000010"]
    assert [Path(path).name for path in told["kept"]] == ["step_00000020", "step_00000005"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step_00000005", "step_00000020"]


def test_prune_removes_nothing_if_what_would_stay_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_bloom(run / "checkpoints", 15)
    for step in (5, 15):
        flip_a_bit(run / "checkpoints" / f"step_{step:08d}" / "__0_0.distcp")
    assert main(["prune", str(run), "--keep", "1"]) == 0
    assert capsys.readouterr().out == "0 removed, 3 kept\n"


def test_prune_to_nothing_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="--keep 0 must be at least 1"):
        main(["prune", str(run), "--keep", "0"])
