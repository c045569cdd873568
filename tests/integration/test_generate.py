"""``poro generate`` on what a run left behind: the run, a checkpoint, and an export of it say the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.cli.generate import main
from megatron_poro.cli.main import main as poro
from megatron_poro.cli.train import main as train
from megatron_poro.errors import CheckpointError
from megatron_poro.evaluate.loading import load_model
from tests.integration.toy import STEPS, RunOnDisk, ToyCorpora


@pytest.fixture(scope="module")
def run(corpora: ToyCorpora, tmp_path_factory: pytest.TempPathFactory) -> RunOnDisk:
    """A finished run with one export."""
    root = tmp_path_factory.mktemp("generate")
    arguments = corpora.arguments(root, "engine.precision=bf16", "checkpoint.every_steps=5")
    assert train(arguments) == 0
    assert poro(["export", str(root / "toy"), "--no-parity"]) == 0
    return RunOnDisk(root)


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments, "--max-new-tokens", "12"]) == 0
    return capsys.readouterr().out


def test_run_checkpoint_and_export_say_the_same(run: RunOnDisk, capsys: pytest.CaptureFixture[str]) -> None:
    (export,) = (run.folder / "exports").iterdir()
    places = [run.folder, run.folder / "checkpoints", run.store.path(STEPS), export]
    said = {_said(capsys, str(place), "Suomen ") for place in places}
    assert len(said) == 1
    text = said.pop()
    assert text.startswith("Suomen ")
    assert len(text.rstrip("\n")) > len("Suomen ")


def test_older_checkpoint_says_something_else_at_a_temperature(
    run: RunOnDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ("Suomen ", "--temperature", "1", "--seed", "3")
    newest = _said(capsys, str(run.folder), *drawn)
    assert _said(capsys, str(run.folder), *drawn) == newest
    assert _said(capsys, str(run.folder), *drawn[:-1], "4") != newest


def test_loaded_model_is_the_rounded_masters(run: RunOnDisk) -> None:
    reader = CheckpointReader(run.store.path(STEPS))
    loaded = dict(load_model(run.folder).model.named_parameters())
    for name, master in reader.masters():
        assert torch.equal(loaded[name], master.to(torch.bfloat16).float()), name
    assert len(loaded) == len(reader.shapes)


def test_context_is_that_of_the_training(run: RunOnDisk) -> None:
    assert load_model(run.folder).context_tokens == 16


def test_folder_without_a_model_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert poro(["generate", str(tmp_path), "hei"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert str(tmp_path) in told.err


def test_export_that_lost_a_tensor_is_refused(run: RunOnDisk, tmp_path: Path) -> None:
    (export,) = (run.folder / "exports").iterdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(export, damaged)
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(CheckpointError, match=r"blocks\.2"):
        load_model(damaged)
    (damaged / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(CheckpointError, match="not its config's"):
        load_model(damaged)
    for path in damaged.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    (damaged / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(damaged)
