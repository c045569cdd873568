"""Hugging Face -> checkpoint -> Hugging Face: equal bytes; whatever does not fit is refused by name."""

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron_poro.checkpoint import hf_import
from megatron_poro.checkpoint.hf_export import export_checkpoint
from megatron_poro.checkpoint.hf_import import import_hugging_face
from megatron_poro.checkpoint.parity import prove_parity
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.resuming import load
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.run import EngineConfig, Precision
from megatron_poro.engine.engine import FragmentKind
from megatron_poro.errors import CheckpointError, DataError
from megatron_poro.models.bloom_names import bloom_tensors
from tests.unit.checkpoint.bloom_checkpoint import MODEL, TOKENIZER, BloomEngine, save_bloom
from tests.unit.checkpoint.fake_engine import CONFIG, snapshot


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that transformers made and saved: its names, its files, its config."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(1)
    config = transformers.BloomConfig(
        hidden_size=56, n_layer=2, n_head=7, vocab_size=281, bos_token_id=1, eos_token_id=2, pad_token_id=3
    )
    model = transformers.BloomForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    model.to(request.param).save_pretrained(folder, max_shard_size="60KB")
    TOKENIZER.save(folder)
    return folder


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_there_and_back_gives_equal_tensors_and_is_proven(published: Path, tmp_path: Path) -> None:
    path = import_hugging_face(published, CheckpointStore(tmp_path / "checkpoints"))
    export = export_checkpoint(path, tmp_path / "back", prove=prove_parity)
    assert export.proof is not None
    assert export.proof.met
    before, after = tensors_in(published), tensors_in(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name])


def test_the_config_survives_there_and_back(published: Path, tmp_path: Path) -> None:
    path = import_hugging_face(published, CheckpointStore(tmp_path / "checkpoints"))
    export_checkpoint(path, tmp_path / "back", prove=None)
    before, after = (transformers.AutoConfig.from_pretrained(path).to_dict() for path in (published, tmp_path / "back"))
    assert {key for key in before if before[key] != after.get(key)} == {"_name_or_path"}


def test_an_import_after_an_export_gives_the_rounded_masters(tmp_path: Path) -> None:
    first = save_bloom(tmp_path / "first")
    export_checkpoint(first, tmp_path / "out", prove=None)
    second = import_hugging_face(tmp_path / "out", CheckpointStore(tmp_path / "second"))
    before, after = CheckpointReader(first), CheckpointReader(second)
    assert after.shapes == before.shapes
    for name, master in before.masters():
        assert torch.equal(after.tensor(name), master.bfloat16().float())
    export_checkpoint(second, tmp_path / "again", prove=None)
    first_files, second_files = snapshot(tmp_path / "out"), snapshot(tmp_path / "again")
    del first_files["export_report.json"], second_files["export_report.json"]
    assert first_files == second_files


def test_masters_are_the_weights_and_moments_are_zero(published: Path, tmp_path: Path) -> None:
    reader = CheckpointReader(import_hugging_face(published, CheckpointStore(tmp_path)))
    weights = tensors_in(published)
    assert len(reader.tensors) == 3 * 29
    for tensor in bloom_tensors(MODEL):
        assert torch.equal(reader.tensor(tensor.canonical), weights[tensor.hugging_face].float())
        for kind in (FragmentKind.EXP_AVG, FragmentKind.EXP_AVG_SQ):
            assert not reader.tensor(tensor.canonical, kind).any()
    assert (reader.state.step, reader.state.consumed_samples, reader.state.optimizer_step) == (0, 0, 0)
    assert reader.model == MODEL
    assert reader.tokenizer.fingerprint == TOKENIZER.fingerprint


def test_one_tensor_is_in_memory_at_a_time(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[np.ndarray[Any, Any]]] = []  # the memory, not the tensor objects that share it
    most = 0

    def noting(tensor: hf_import.StoredTensor) -> torch.Tensor:
        nonlocal most
        memory = tensor.read().float().numpy().copy()
        made.append(weakref.ref(memory))
        most = max(most, sum(reference() is not None for reference in made))
        return torch.from_numpy(memory)

    monkeypatch.setattr(hf_import, "_as_master", noting)
    import_hugging_face(published, CheckpointStore(tmp_path))
    assert len(made) == 29
    assert most <= 2  # the one that is made, while torch still holds the one before


class LoadableEngine(BloomEngine):
    def load_finished(self, optimizer_step: int) -> None:
        self.optimizer_step = optimizer_step


def test_a_run_goes_on_from_an_import_if_the_model_is_the_same(published: Path, tmp_path: Path) -> None:
    path = import_hugging_face(published, CheckpointStore(tmp_path))
    engine = LoadableEngine()
    config = replace(CONFIG, model=replace(MODEL, init_std=0.5), engine=EngineConfig(precision=Precision.FP32))
    state = load(path, engine, config=config, tokenizer_fingerprint=TOKENIZER.fingerprint)
    assert (state.step, engine.optimizer_step) == (0, 0)
    weights = tensors_in(published)
    parameters = dict(engine.model.named_parameters())
    for tensor in bloom_tensors(MODEL):
        assert torch.equal(parameters[tensor.canonical], weights[tensor.hugging_face].float())
    other = replace(config, model=replace(MODEL, hidden_dropout=0.1))
    with pytest.raises(CheckpointError, match=r"model\.hidden_dropout was 0\.0, is now 0\.1"):
        load(path, engine, config=other, tokenizer_fingerprint=TOKENIZER.fingerprint)


def changed(published: Path, folder: Path, change: Any, *, file: str = "model.safetensors") -> Path:
    """A copy of the model in one file, with its tensors changed."""
    tensors = tensors_in(published)
    shutil.copytree(published, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    replaced = change(tensors)
    tensors = replaced if isinstance(replaced, dict) else tensors
    if file.endswith(".bin"):
        torch.save(tensors, folder / file)
    else:
        save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_older_files_are_read(published: Path, tmp_path: Path, file: str, prefix: str) -> None:
    """Pickles; names without the prefix; a head that is stored although it is tied."""

    def older(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        head = tensors["transformer.word_embeddings.weight"].clone()
        return {name.replace("transformer.", prefix): tensor for name, tensor in tensors.items()} | {
            "lm_head.weight": head
        }

    folder = changed(published, tmp_path / "older", older, file=file)
    reader = CheckpointReader(import_hugging_face(folder, CheckpointStore(tmp_path / "checkpoints")))
    weights = tensors_in(published)
    for tensor in bloom_tensors(MODEL):
        assert torch.equal(reader.tensor(tensor.canonical), weights[tensor.hugging_face].float())


LN_F = "transformer.ln_f.bias"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(LN_F), f"it has no {LN_F}"),
        (
            lambda tensors: tensors.update({"transformer.h.2.input_layernorm.bias": torch.zeros(56)}),
            "h.2.input_layernorm.bias is unknown",
        ),
        (lambda tensors: tensors.update({LN_F: torch.zeros(57)}), f"{LN_F} is [57], config.json asks for [56]"),
        (lambda tensors: tensors.update({LN_F: torch.zeros(56, dtype=torch.int32)}), "only float formats are read"),
        (
            lambda tensors: tensors.update({"lm_head.weight": torch.zeros(281, 56)}),
            "lm_head.weight is not equal to transformer.word_embeddings.weight",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(published: Path, tmp_path: Path, change: Any, said: str) -> None:
    folder = changed(published, tmp_path / "changed", change)
    with pytest.raises(CheckpointError) as caught:
        import_hugging_face(folder, CheckpointStore(tmp_path / "checkpoints"))
    assert said in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


def copied(published: Path, folder: Path, **config: Any) -> Path:
    shutil.copytree(published, folder)
    before = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**before, **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2"}, "model family 'gpt2' has no Hugging Face format here; known: bloom"),
        ({"n_layer": 3}, "it has no transformer.h.2.input_layernorm.weight"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm=True"),
        ({"vocab_size": 200}, "its tokenizer has 280 ids, config.json has vocab_size=200"),
        ({"eos_token_id": 0}, "config.json has eos_token_id=0, its tokenizer has 2"),
    ],
)
def test_a_config_that_does_not_fit_is_named(
    published: Path, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        import_hugging_face(copied(published, tmp_path / "other", **config), CheckpointStore(tmp_path / "checkpoints"))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "error", "said"),
    [
        ("config.json", None, CheckpointError, "config.json cannot be read (No such file or directory)"),
        ("config.json", "{", CheckpointError, "config.json is not JSON"),
        ("config.json", "[]", CheckpointError, "config.json holds a list, not an object"),
        ("tokenizer.json", None, DataError, "has no tokenizer.json"),
        ("model-00001-of-00004.safetensors", "", CheckpointError, "model-00001-of-00004.safetensors cannot be read"),
        ("model-00001-of-00004.safetensors", None, CheckpointError, "model-00001-of-00004.safetensors cannot be read"),
        ("model.safetensors.index.json", None, CheckpointError, "has no weights"),
    ],
)
def test_a_missing_or_damaged_file_is_named(
    published: Path, tmp_path: Path, name: str, text: str | None, error: type[Exception], said: str
) -> None:
    if not (published / name).exists():
        name = next(path.name for path in sorted(published.glob("model-00001-of-*.safetensors")))
        said = said.replace("model-00001-of-00004.safetensors", name)
    folder = copied(published, tmp_path / "other")
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(error) as caught:
        import_hugging_face(folder, CheckpointStore(tmp_path / "checkpoints"))
    assert said in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()
