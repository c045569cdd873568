"""Checkpoint -> Hugging Face and back: bit for bit, in one piece or not at all, and proven by transformers."""

import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers.models.bloom import modeling_bloom

from megatron_poro.checkpoint import hf_export, hf_format, parity
from megatron_poro.checkpoint.export_report import REPORT_NAME, export_problems, read_report
from megatron_poro.checkpoint.hf_export import Proof, UnprovenError, export_checkpoint
from megatron_poro.checkpoint.hf_files import CONFIG_NAME, GENERATION_CONFIG_NAME
from megatron_poro.checkpoint.manifest import describe
from megatron_poro.checkpoint.parity import Logits, fixed_batches, judge, prove_parity
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.rows import TensorRows
from megatron_poro.checkpoint.safetensors_file import TensorEntry, write_safetensors
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.model import AlibiForm
from megatron_poro.config.run import Precision
from megatron_poro.errors import CheckpointError
from megatron_poro.models.bloom_names import SpecialIds, bloom_tensors
from megatron_poro.tokenizer.tokenizer import Tokenizer
from tests.unit.checkpoint.bloom_checkpoint import MODEL, TOKENIZER, BloomEngine, bloom_state, save_bloom
from tests.unit.checkpoint.fake_engine import snapshot


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bloom(tmp_path_factory.mktemp("run") / "checkpoints", milestone="1k")


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "1k"
    export_checkpoint(checkpoint, folder, prove=prove_parity, max_shard_bytes=60_000)
    return folder


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_every_exported_tensor_is_its_rounded_master_bit_for_bit(checkpoint: Path, exported: Path) -> None:
    reader, found = CheckpointReader(checkpoint), tensors_in(exported)
    assert set(found) == {tensor.hugging_face for tensor in bloom_tensors(MODEL)}
    for tensor in bloom_tensors(MODEL):
        master = reader.tensor(tensor.canonical)
        assert torch.equal(found[tensor.hugging_face], master.bfloat16())
        assert master.bfloat16().float().ne(master).any()  # there was something to round


def test_transformers_loads_each_tensor_and_no_other(checkpoint: Path, exported: Path) -> None:
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    model, info = loaded
    assert not any(info[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == "BloomForCausalLM"
    assert model.dtype is torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.transformer.word_embeddings.weight.data_ptr()
    reader = CheckpointReader(checkpoint)
    state = model.state_dict()
    for tensor in bloom_tensors(MODEL):
        assert torch.equal(state[tensor.hugging_face], reader.tensor(tensor.canonical).bfloat16())


def test_transformers_reads_the_tokenizer_to_the_same_ids(exported: Path) -> None:
    text = "Hyvää päivää, world!\n"
    assert transformers.AutoTokenizer.from_pretrained(exported)(text).input_ids == TOKENIZER.encode(text)
    assert Tokenizer.load(exported).fingerprint == TOKENIZER.fingerprint


def test_the_report_carries_the_proof_and_no_path(exported: Path, checkpoint: Path) -> None:
    text = (exported / REPORT_NAME).read_text()
    report = json.loads(text)
    assert report["parity"]["met"] is True
    assert report["parity"]["max_abs_difference"] <= report["parity"]["tolerance"] < 1e-3
    assert report["parity"]["argmax_agreement"] == 1.0
    assert report["parity"]["positions"] == 512
    assert report["parity"]["loss_export"] == pytest.approx(report["parity"]["loss_checkpoint"], abs=1e-5)
    assert report["checkpoint"]["milestone"] == "1k"
    assert report["model"] == {
        "dtype": "bfloat16",
        "tensors": 29,
        "parameters": 92680,
        "tensor_bytes": 185360,
        "shards": 4,
    }
    assert str(checkpoint.parent) not in text


def test_files_and_index_are_named_as_transformers_names_them(exported: Path) -> None:
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 185360}
    assert sorted(set(index["weight_map"].values())) == [f"model-{n:05d}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    for name, file in index["weight_map"].items():
        with safe_open(exported / file, framework="pt") as opened:
            assert name in opened.keys()  # noqa: SIM118 (not a mapping)
            assert opened.metadata() == {"format": "pt"}
    assert {path.name for path in exported.iterdir()} == {
        *(f"model-{n:05d}-of-00004.safetensors" for n in (1, 2, 3, 4)),
        "model.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "export_report.json",
    }


def test_a_small_model_is_one_file_without_an_index(checkpoint: Path, tmp_path: Path) -> None:
    export = export_checkpoint(checkpoint, tmp_path / "one", prove=None)  # the run's max_shard_bytes: 5 GB
    assert export.shards == 1
    assert (tmp_path / "one" / "model.safetensors").exists()
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    assert json.loads((tmp_path / "one" / REPORT_NAME).read_text())["parity"] is None


def test_an_fp32_run_is_exported_without_rounding(tmp_path: Path) -> None:
    path = save_bloom(tmp_path / "checkpoints", precision=Precision.FP32)
    export = export_checkpoint(path, tmp_path / "out", prove=prove_parity)
    assert export.proof is not None
    assert export.proof.met
    found, reader = tensors_in(tmp_path / "out"), CheckpointReader(path)
    for tensor in bloom_tensors(MODEL):
        assert torch.equal(found[tensor.hugging_face], reader.tensor(tensor.canonical))
    assert json.loads((tmp_path / "out" / CONFIG_NAME).read_text())["dtype"] == "float32"


def test_a_run_with_the_historic_alibi_exports_too(tmp_path: Path) -> None:
    path = save_bloom(tmp_path / "checkpoints", alibi=AlibiForm.HISTORIC_BF16)
    export = export_checkpoint(path, tmp_path / "out", prove=prove_parity)
    assert export.proof is not None
    assert export.proof.met


def test_a_text_is_compared_as_well(checkpoint: Path, exported: Path) -> None:
    proof = prove_parity(CheckpointReader(checkpoint), exported, text="Suomen kieli")
    assert proof.met
    assert proof.measurements["positions"] == 512 + len("Suomen kieli")


CONFIG_KEYS = sorted(
    {
        *("apply_residual_connection_post_layernorm", "architectures", "attention_dropout", "bos_token_id", "dtype"),
        *("attention_softmax_in_fp32", "eos_token_id", "hidden_dropout", "hidden_size", "initializer_range"),
        *("layer_norm_epsilon", "masked_softmax_fusion", "model_type", "n_head", "n_layer", "pad_token_id"),
        *("pretraining_tp", "slow_but_exact", "torch_dtype", "transformers_version", "use_cache", "vocab_size"),
    }
)


def mutated(value: Any) -> Any:
    """The same kind of value, but another."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value * 2 + 1
        case str():
            return value + "x"
        case list():
            return [*value, "Other"]


def test_the_keys_that_are_mutated_below_are_all_there_are(exported: Path) -> None:
    assert sorted(json.loads((exported / CONFIG_NAME).read_text())) == CONFIG_KEYS


@pytest.mark.parametrize("key", [*CONFIG_KEYS, "tie_word_embeddings", "n_embed"])
def test_any_field_of_the_config_that_is_not_the_checkpoints_is_refused(
    checkpoint: Path, exported: Path, tmp_path: Path, key: str
) -> None:
    folder = tmp_path / "mutated"
    shutil.copytree(exported, folder)
    config = json.loads((folder / CONFIG_NAME).read_text())
    config[key] = mutated(config[key]) if key in config else 1
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    proof = prove_parity(CheckpointReader(checkpoint), folder)
    assert not proof.met
    assert f"config.json has {key}={config[key]!r}, the checkpoint" in proof.verdict


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "pad_token_id", "max_length", "_from_model_config"])
def test_any_field_of_the_generation_config_that_is_not_the_checkpoints_is_refused(
    checkpoint: Path, exported: Path, tmp_path: Path, key: str
) -> None:
    folder = tmp_path / "mutated"
    shutil.copytree(exported, folder)
    config = json.loads((folder / GENERATION_CONFIG_NAME).read_text())
    config[key] = mutated(config[key]) if key in config else 1
    (folder / GENERATION_CONFIG_NAME).write_text(json.dumps(config))
    proof = prove_parity(CheckpointReader(checkpoint), folder)
    assert not proof.met
    assert f"generation_config.json has {key}={config[key]!r}, the checkpoint" in proof.verdict


WRITTEN_BY_THE_TABLES = {
    "hidden_size": 112,
    "n_layer": 1,
    "n_head": 8,
    "vocab_size": 280,
    "layer_norm_epsilon": 1.001e-5,
    "apply_residual_connection_post_layernorm": True,
    "tie_word_embeddings": False,
    "slow_but_exact": True,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.03,
    "use_cache": False,
    "architectures": ["BloomModel"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "dtype": "float32",
}
"""A wrong value for everything that transformers' BLOOM looks at."""


@pytest.mark.parametrize("key", list(WRITTEN_BY_THE_TABLES))
def test_an_exporter_that_writes_a_wrong_field_is_caught(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """The gate does not lean on the tables that the file was written with: here they agree on the wrong value."""
    right = hf_format.FORMATS["bloom"]

    def wrong(*arguments: Any, **settings: Any) -> dict[str, Any]:
        return {**right.to_config(*arguments, **settings), key: WRITTEN_BY_THE_TABLES[key]}

    monkeypatch.setitem(hf_format.FORMATS, "bloom", replace(right, to_config=wrong))
    with pytest.raises(UnprovenError, match=f"transformers reads a config that has {READ_AS.get(key, key)}="):
        export_checkpoint(checkpoint, tmp_path / "1k", prove=prove_parity)
    assert [path.name for path in tmp_path.iterdir()] == ["1k.failed"]


READ_AS = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}


def test_what_transformers_reads_covers_every_size_of_the_model() -> None:
    """A field that is added to the schema has to be thought of here."""
    read = hf_format.FORMATS["bloom"].as_read(MODEL, dtype="bfloat16", special=SpecialIds(1, 2, 3))
    # the class, and a rounding that fp32 does not have
    ours = {field.name for field in fields(MODEL)} - {"family", "alibi"}
    theirs = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "init_std": "initializer_range"}
    assert {theirs.get(name, name) for name in ours} <= read.keys()


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_another_activation_is_caught_by_the_logits(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activation: str
) -> None:
    """No field says which one it is, so only the numbers can tell: the exact GELU is a hair from the tanh one."""

    def other(tensor: torch.Tensor) -> torch.Tensor:
        return getattr(functional, activation)(tensor)

    monkeypatch.setattr(modeling_bloom.BloomGelu, "forward", lambda _, tensor: other(tensor))
    with pytest.raises(UnprovenError, match="logits differ by at most"):
        export_checkpoint(checkpoint, tmp_path / "1k", prove=prove_parity)


def test_other_slopes_are_caught_by_the_logits(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = modeling_bloom.build_alibi_tensor
    monkeypatch.setattr(modeling_bloom, "build_alibi_tensor", lambda *a, **k: 1.01 * right(*a, **k))
    with pytest.raises(UnprovenError, match="logits differ by at most"):
        export_checkpoint(checkpoint, tmp_path / "1k", prove=prove_parity)


def test_another_tokenizer_in_the_folder_is_refused(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mutated"
    shutil.copytree(exported, folder)
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["pre_tokenizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    proof = prove_parity(CheckpointReader(checkpoint), folder)
    assert not proof.met
    assert "tokenizer.json has fingerprint" in proof.verdict


@pytest.mark.parametrize("role", ["bos", "eos", "pad"])
def test_special_tokens_that_are_not_the_checkpoints_are_refused(
    checkpoint: Path, exported: Path, tmp_path: Path, role: str
) -> None:
    folder = tmp_path / "mutated"
    shutil.copytree(exported, folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, f"{role}_token": "<unk>"}))
    proof = prove_parity(CheckpointReader(checkpoint), folder)
    assert not proof.met
    assert f"transformers reads a tokenizer that has {role}_token_id=0, the checkpoint" in proof.verdict


def test_a_float_where_a_count_belongs_is_refused(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mutated"
    shutil.copytree(exported, folder)
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, "n_head": 7.0}))
    assert "config.json has n_head=7.0, the checkpoint 7" in prove_parity(CheckpointReader(checkpoint), folder).verdict


def with_tensors(exported: Path, folder: Path, change: Any) -> Path:
    """A copy of the export, in one file, with its tensors changed."""
    shutil.copytree(exported, folder)
    tensors = tensors_in(folder)
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


QKV = "transformer.h.1.self_attention.query_key_value.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors[QKV].view(torch.int16)[5, 7].bitwise_xor_(1), QKV),  # one bit of one element
        (lambda tensors: tensors.update({QKV: tensors[QKV].flip(0).contiguous()}), QKV),
        (lambda tensors: tensors.pop("transformer.ln_f.bias"), "transformer.ln_f.bias"),
        (lambda tensors: tensors.update({"lm_head.weight": torch.zeros(281, 56)}), "lm_head.weight"),
        (lambda tensors: tensors.update({QKV: tensors[QKV].float()}), QKV),
    ],
)
def test_any_tensor_that_is_not_the_checkpoints_is_named(
    checkpoint: Path, exported: Path, tmp_path: Path, change: Any, named: str
) -> None:
    proof = prove_parity(CheckpointReader(checkpoint), with_tensors(exported, tmp_path / "changed", change))
    assert not proof.met
    assert proof.verdict == f"1 tensors are not the rounded masters: {named}."


def test_the_logits_alone_also_tell_two_models_apart(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    """The third comparison does not lean on the first two."""

    def shift(tensors: dict[str, torch.Tensor]) -> None:
        tensors[QKV][0, 0] += 0.05

    reader = CheckpointReader(checkpoint)
    batches = fixed_batches(MODEL.vocab_size, TOKENIZER, text=None)
    ours = parity._logits_here(reader, batches)
    theirs, unloaded = parity._logits_there(with_tensors(exported, tmp_path / "changed", shift), batches)
    proof = judge(ours, theirs, unloaded=unloaded)
    assert not proof.met
    assert proof.measurements["max_abs_difference"] > proof.measurements["tolerance"]
    # and an export whose model has other heads is another model, whatever its config says
    other = replace(reader.model, num_heads=8)
    reader.__dict__["model"] = other
    theirs, unloaded = parity._logits_there(exported, batches)
    assert not judge(parity._logits_here(reader, batches), theirs, unloaded=unloaded).met


def logits(*values: float) -> Logits:
    return Logits([torch.tensor([[list(values)]])], loss=1.0)


@pytest.mark.parametrize(
    ("theirs", "unloaded", "met"),
    [
        (logits(1.0, 0.0), [], True),
        (logits(1.0 + 0.9e-5, 0.0), [], True),
        (logits(1.0 + 1.2e-5, 0.0), [], False),
        (logits(0.0, 1.0), [], False),
        (logits(float("nan"), 0.0), [], False),
        (logits(1.0, 0.0), ["transformer.ln_f.bias"], False),
    ],
)
def test_the_verdict_needs_equal_logits_and_all_tensors(theirs: Logits, unloaded: list[str], met: bool) -> None:
    proof = judge(logits(1.0, 0.0), theirs, unloaded=unloaded)
    assert proof.met is met
    assert all(name in proof.verdict for name in unloaded)


def test_level_choices_count_as_the_same_choice() -> None:
    assert judge(logits(1.0, 1.0 + 1e-6), logits(1.0 + 1e-6, 1.0), unloaded=[]).measurements["argmax_agreement"] == 1.0


def test_an_export_that_is_not_proven_does_not_get_its_name(checkpoint: Path, tmp_path: Path) -> None:
    def disprove(reader: CheckpointReader, folder: Path) -> Proof:
        return Proof(met=False, verdict="logits differ by at most 3 (tolerance 1).", measurements={"difference": 3})

    with pytest.raises(CheckpointError, match=r"is not the model of the checkpoint: logits differ by at most 3"):
        export_checkpoint(checkpoint, tmp_path / "1k", prove=disprove)
    assert [path.name for path in tmp_path.iterdir()] == ["1k.failed"]
    report = json.loads((tmp_path / "1k.failed" / REPORT_NAME).read_text())
    assert report["parity"] == {"met": False, "verdict": "logits differ by at most 3 (tolerance 1).", "difference": 3}


def test_an_export_is_durable_before_it_gets_its_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    sync, rename = os.fsync, Path.rename

    def noting_sync(descriptor: int) -> None:
        sync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def checking_rename(path: Path, target: Path) -> Path:
        missing = [entry.name for entry in (path, *path.rglob("*")) if entry.stat().st_ino not in synced]
        assert not missing, f"not durable when {path.name} is renamed: {missing}"
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(Path, "rename", checking_rename)
    export_checkpoint(checkpoint, tmp_path / "1k", prove=None)
    assert tmp_path.stat().st_ino in synced


def test_an_export_that_exists_is_not_touched(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "1k").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        export_checkpoint(checkpoint, tmp_path / "1k", prove=None)


def with_a_damaged_file(checkpoint: Path, folder: Path, name: str) -> Path:
    damaged = folder / "step_00000005"
    shutil.copytree(checkpoint, damaged)
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return damaged


def test_moments_are_neither_read_nor_compared(checkpoint: Path, tmp_path: Path) -> None:
    damaged = with_a_damaged_file(checkpoint, tmp_path, "__0_1.distcp")
    export_checkpoint(damaged, tmp_path / "out", prove=None)
    with pytest.raises(CheckpointError, match=r"__0_1.distcp does not have the checksum"):
        CheckpointReader(damaged).require_intact()


def test_a_damaged_checkpoint_is_not_exported(checkpoint: Path, tmp_path: Path) -> None:
    damaged = with_a_damaged_file(checkpoint, tmp_path, "__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"__0_0.distcp does not have the checksum"):
        export_checkpoint(damaged, tmp_path / "out", prove=None)
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    definition = json.loads((checkpoint / "tokenizer" / "tokenizer.json").read_text())
    definition["pre_tokenizer"] = None
    other = Tokenizer(json.dumps(definition), {"eos_token": "</s>"})
    with pytest.raises(CheckpointError, match="is not the tokenizer of checkpoint"):
        export_checkpoint(checkpoint, tmp_path / "out", prove=None, tokenizer=other)


def test_a_milestone_that_is_taken_away_meanwhile_gets_no_export(checkpoint: Path, tmp_path: Path) -> None:
    """A rewind moves the checkpoints of the history it leaves: what was made of them belongs to it."""
    rewound = tmp_path / "step_00000005"
    shutil.copytree(checkpoint, rewound)

    def prove(reader: CheckpointReader, folder: Path) -> Proof:
        rewound.rename(tmp_path / "abandoned")
        return Proof(met=True, verdict="Equal.", measurements={})

    with pytest.raises(CheckpointError, match=r"step_00000005 was taken away while it was exported"):
        export_checkpoint(rewound, tmp_path / "1k", prove=prove)
    assert [path.name for path in tmp_path.iterdir()] == ["abandoned"]


def test_two_processes_do_not_make_the_same_export(checkpoint: Path, tmp_path: Path) -> None:
    def prove(reader: CheckpointReader, folder: Path) -> Proof:
        with pytest.raises(CheckpointError, match=r"1k is being made by another process"):
            export_checkpoint(checkpoint, tmp_path / "1k", prove=None)
        return Proof(met=True, verdict="Equal.", measurements={})

    export_checkpoint(checkpoint, tmp_path / "1k", prove=prove)
    assert [path.name for path in tmp_path.iterdir()] == ["1k"]


def test_the_report_says_what_each_file_is(exported: Path, tmp_path: Path) -> None:
    report = read_report(exported)
    assert report["format"] == 1
    assert report["checkpoint"]["name"] == "step_00000005"
    assert [report["checkpoint"][key] for key in ("step", "consumed_samples", "consumed_tokens")] == [5, 20, 320]
    assert report["exported_by"]["transformers"] == transformers.__version__
    assert report["files"] == {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(exported.iterdir())
        if path.name != REPORT_NAME
    }
    assert export_problems(exported) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin is not of this export"),
        (lambda folder: flip_a_bit(folder / "model-00002-of-00004.safetensors"), "model-00002-of-00004.safetensors is"),
        (lambda folder: (folder / "tokenizer.json").open("ab").write(b"x"), "tokenizer.json is not the file"),
    ],
)
def test_an_export_that_is_no_longer_whole_is_told(exported: Path, tmp_path: Path, damage: Any, said: str) -> None:
    shutil.copytree(exported, tmp_path / "1k")
    damage(tmp_path / "1k")
    (problem,) = export_problems(tmp_path / "1k")
    assert problem.startswith(said)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no export: it has no export_report.json"),
        ("{", "export_report.json is damaged"),
        ("[]", "export_report.json is damaged"),
        ('{"format": 1}', "export_report.json is damaged"),
        ('{"format": 2, "files": {}}', "export_report.json has format 2, this release reads 1"),
    ],
)
def test_a_report_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / REPORT_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_report(tmp_path)


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(hf_export, "write_safetensors", refuse)
    with pytest.raises(CheckpointError, match=r"out was not written: No space left on device .*model.safetensors"):
        export_checkpoint(checkpoint, tmp_path / "out", prove=None)
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_said_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1_000_000})()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"no room for an export in .*: it needs 33\.\d MB and 1 MB are free"):
        export_checkpoint(checkpoint, tmp_path / "out", prove=None)
    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_export_left_is_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "model-00001-of-00002.safetensors").write_bytes(b"half")
    export_checkpoint(checkpoint, tmp_path / "out", prove=None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "model-00001-of-00002.safetensors" not in snapshot(tmp_path / "out")


def test_a_checkpoint_whose_config_is_of_another_model_is_refused(tmp_path: Path) -> None:
    state = bloom_state(5, model=replace(MODEL, num_layers=3))
    path = save(CheckpointStore(tmp_path), BloomEngine(), state, tokenizer=TOKENIZER)
    with pytest.raises(CheckpointError, match=r"blocks\.2\.attention\.out\.bias is None, expected \(56,\)"):
        export_checkpoint(path, tmp_path / "out", prove=None)


def test_safetensors_written_by_hand_read_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.tensor(2.5), "c": torch.randn(4)}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        entries = [TensorEntry(name, tuple(tensor.shape)) for name, tensor in cast.items()]
        assert write_safetensors(tmp_path / "x", entries, iter(cast.values()), dtype=dtype) == describe(tmp_path / "x")
        read = load_file(tmp_path / "x")
        assert all(torch.equal(read[name], tensor) for name, tensor in cast.items())


def test_a_block_is_freed_before_the_next_is_asked_for(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray[Any, Any]]] = []  # the memory, not the tensor objects that share it

    def blocks() -> Iterator[torch.Tensor]:
        for number in range(10):
            assert [reference for reference in alive if reference() is not None] == []
            memory = np.full(500, float(number), dtype=np.float32)
            alive.append(weakref.ref(memory))
            block = torch.from_numpy(memory)
            del memory
            yield block
            del block

    write_safetensors(tmp_path / "x", [TensorEntry(str(n), (2, 500)) for n in range(5)], blocks(), dtype=torch.float32)
    assert len(alive) == 10
    assert load_file(tmp_path / "x")["3"].unique(dim=1).tolist() == [[6.0], [7.0]]


def test_few_blocks_are_in_memory_whatever_the_size_of_the_model(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[np.ndarray[Any, Any]]] = []
    most = 0

    def noting(rows: TensorRows, begin: int, end: int, read: Any = TensorRows.read) -> torch.Tensor:
        nonlocal most
        memory = read(rows, begin, end).numpy().copy()
        assert memory.size <= 224  # a row of the widest matrix
        alive.append(weakref.ref(memory))
        most = max(most, sum(reference() is not None for reference in alive))
        return torch.from_numpy(memory)

    monkeypatch.setattr(TensorRows, "read", noting)
    monkeypatch.setattr(CheckpointReader, "dtype", torch.float32)  # so that rounding makes no copy of its own
    monkeypatch.setattr(hf_export, "BLOCK_ELEMENTS", 200)
    export_checkpoint(checkpoint, tmp_path / "out", prove=None)
    assert len(alive) > 400
    assert most <= hf_export.BLOCKS_AHEAD + 2  # those waiting, the one that is written and the one before it
    reader, found = CheckpointReader(checkpoint), tensors_in(tmp_path / "out")
    for tensor in bloom_tensors(MODEL):
        assert torch.equal(found[tensor.hugging_face], reader.tensor(tensor.canonical))
