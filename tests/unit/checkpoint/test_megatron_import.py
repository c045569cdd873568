"""Megatron-DeepSpeed -> checkpoint -> Hugging Face: the bytes of the straight export, whatever the tensor size."""

import json
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_poro.checkpoint import parity
from megatron_poro.checkpoint.hf_export import export_checkpoint
from megatron_poro.checkpoint.megatron_import import import_megatron, is_megatron
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.engine.engine import FragmentKind
from megatron_poro.errors import CheckpointError, DataError
from tests.support.megatron import write_megatron
from tests.unit.checkpoint.bloom_checkpoint import save_bloom
from tests.unit.checkpoint.fake_engine import snapshot


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it is published: 7 heads, 281 rows, so that the embedding has to be padded for 7 ranks."""
    folder = tmp_path_factory.mktemp("released")
    checkpoint = save_bloom(folder / "checkpoints")
    export_checkpoint(checkpoint, folder / "model", prove=None, max_shard_bytes=60_000)
    return folder / "model"


@pytest.fixture(scope="module")
def weights(released: Path) -> dict[str, torch.Tensor]:
    tensors = {name: tensor for path in released.glob("*.safetensors") for name, tensor in load_file(path).items()}
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(("tensor_size", "vocab_multiple"), [(1, 1), (7, 7), (7, 128 * 7), (1, 300)])
def test_an_export_after_an_import_has_the_bytes_of_the_straight_export(
    released: Path, weights: dict[str, torch.Tensor], tmp_path: Path, tensor_size: int, vocab_multiple: int
) -> None:
    write_megatron(tmp_path / "theirs", weights, tensor_size=tensor_size, vocab_multiple=vocab_multiple)
    imported = import_megatron(tmp_path / "theirs", CheckpointStore(tmp_path / "ours"), described_by=released)
    assert imported.tensor_size == tensor_size
    assert imported.padding_rows == -281 % vocab_multiple
    assert set(imported.drift.values()) == {0.0}
    export_checkpoint(imported.checkpoint, tmp_path / "back", prove=parity.prove_parity, max_shard_bytes=60_000)
    straight, back = snapshot(released), snapshot(tmp_path / "back")
    del straight["export_report.json"], back["export_report.json"]
    assert straight == back


def test_masters_are_the_weights_and_moments_are_zero(
    released: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    step_folder = write_megatron(tmp_path / "theirs", weights, tensor_size=7, vocab_multiple=7)
    reader = CheckpointReader(
        import_megatron(step_folder, CheckpointStore(tmp_path / "ours"), described_by=released).checkpoint
    )
    assert torch.equal(reader.tensor("embedding.weight"), weights["word_embeddings.weight"].float())
    qkv = weights["h.1.self_attention.query_key_value.weight"].float()
    assert torch.equal(reader.tensor("blocks.1.attention.qkv.weight"), qkv)
    for kind in (FragmentKind.EXP_AVG, FragmentKind.EXP_AVG_SQ):
        assert not reader.tensor("blocks.1.attention.qkv.weight", kind).any()
    assert (reader.state.step, reader.state.consumed_samples) == (0, 0)
    assert reader.setting("engine.precision", None) == "bf16"


def test_copies_that_drifted_apart_are_averaged_in_fp32_and_reported(
    released: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    whole = {name: tensor.float() for name, tensor in weights.items()}
    drift = {
        ("h.0.input_layernorm.weight", 1): 0.25,
        ("h.0.input_layernorm.weight", 2): -0.5,
        ("h.1.mlp.dense_4h_to_h.bias", 6): 1.75,
        ("ln_f.bias", 0): 2**-12,  # less than bf16 keeps of it: averaged in bf16 it would be lost
    }
    write_megatron(tmp_path / "theirs", whole, tensor_size=7, vocab_multiple=7, drift=drift)
    imported = import_megatron(tmp_path / "theirs", CheckpointStore(tmp_path / "ours"), described_by=released)
    apart = {name: value for name, value in imported.drift.items() if value}
    assert apart == {
        "blocks.0.attention_norm.weight": pytest.approx(0.75, rel=1e-5),
        "blocks.1.mlp.down.bias": pytest.approx(1.75, rel=1e-5),
        "final_norm.bias": pytest.approx(2**-12, rel=1e-3),
    }
    assert len(imported.drift) == 2 + 2 * 6 + 2  # every norm and every bias of a layer that sums over the ranks
    reader = CheckpointReader(imported.checkpoint)
    for theirs, ours, mean in (
        ("h.0.input_layernorm.weight", "blocks.0.attention_norm.weight", -0.25 / 7),
        ("h.1.mlp.dense_4h_to_h.bias", "blocks.1.mlp.down.bias", 0.25),
        ("ln_f.bias", "final_norm.bias", 2**-12 / 7),
        ("ln_f.weight", "final_norm.weight", 0.0),
    ):
        torch.testing.assert_close(reader.tensor(ours), whole[theirs] + mean, rtol=0, atol=5e-7)
    assert (reader.tensor("final_norm.bias") != whole["ln_f.bias"]).all()


@pytest.fixture
def theirs(weights: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    return write_megatron(tmp_path / "theirs", weights, tensor_size=7, vocab_multiple=7)


def test_the_folder_is_told_by_its_files(theirs: Path, released: Path, tmp_path: Path) -> None:
    assert is_megatron(theirs)
    assert is_megatron(theirs.parent)
    assert not is_megatron(released)
    assert not is_megatron(tmp_path / "nowhere")
    (theirs.parent / "latest").write_text("global_step7")
    assert not is_megatron(theirs.parent)


def rewritten(layer: int, rank: int, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """One file with another content."""

    def rewrite(folder: Path) -> None:
        path = folder / f"layer_{layer:02d}-model_{rank:02d}-model_states.pt"
        torch.save(change(torch.load(path)), path)

    return rewrite


def with_values(layer: int, rank: int, **values: Any) -> Callable[[Path], None]:
    """One file with some keys more, or others; those given as None are left out. Dots are written as double scores."""
    changes = {key.replace("__", "."): value for key, value in values.items()}

    def change(content: dict[str, Any]) -> dict[str, Any]:
        return OrderedDict({key: value for key, value in {**content, **changes}.items() if value is not None})

    return rewritten(layer, rank, change)


def removed(pattern: str) -> Callable[[Path], None]:
    """Some files less."""

    def remove(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return remove


def copied(before: str, after: str) -> Callable[[Path], None]:
    """The files of a layer once more, under the number of another."""

    def copy(folder: Path) -> None:
        for path in folder.glob(f"{before}-*"):
            shutil.copy(path, folder / path.name.replace(before, after))

    return copy


def cut_short(folder: Path) -> None:
    (folder / "layer_03-model_05-model_states.pt").write_bytes(b"junk")


IN_04_02, IN_03_05 = "layer_04-model_02-model_states.pt", "layer_03-model_05-model_states.pt"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (removed("layer_04-model_03-*"), "no layer_04-model_03-model_states.pt"),
        (removed("layer_04-*"), "it has no blocks.1.attention_norm.weight"),
        (removed("layer_01-*"), "it has no embedding.weight"),
        (copied("layer_04", "layer_05"), "blocks.2.attention_norm.weight is not in it"),
        (copied("layer_01", "layer_09"), "layer_09-model_00-model_states.pt holds a second embedding.weight"),
        (with_values(4, 2, mlp__dense_h_to_4h__bias=None), f"{IN_04_02} has no mlp.dense_h_to_4h.bias"),
        (with_values(4, 2, rotary=torch.zeros(1)), f"{IN_04_02} has an unknown rotary"),
        (
            with_values(3, 5, self_attention__dense__weight=torch.zeros(8, 56)),
            "blocks.0.attention.out.weight is [8, 56] on tensor rank 5, config.json asks for [56, 8]",
        ),
        (
            with_values(3, 5, input_layernorm__bias=torch.zeros(56, dtype=torch.int32)),
            "blocks.0.attention_norm.bias is torch.int32, only float formats are read",
        ),
        (rewritten(3, 5, lambda _: [1]), f"{IN_03_05} holds something else than tensors by name"),
        (rewritten(3, 5, lambda _: {"iteration": 7}), f"{IN_03_05} holds something else than tensors by name"),
        (with_values(3, 5, args=Fraction(1, 2)), f"{IN_03_05} cannot be read"),
        (cut_short, f"{IN_03_05} cannot be read"),
    ],
)
def test_what_is_missing_unknown_or_damaged_is_named(
    theirs: Path, released: Path, tmp_path: Path, damage: Callable[[Path], Any], said: str
) -> None:
    damage(theirs)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        import_megatron(theirs, CheckpointStore(tmp_path / "ours"), described_by=released)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_layer": 3}, "it has no blocks.2.attention_norm.weight"),
        ({"n_layer": 1}, "blocks.1.attention_norm.weight is not in it"),
        ({"vocab_size": 288}, "embedding.weight cannot be [288, 56] in 7 parts [41, 56]"),
        ({"vocab_size": 270}, "its tokenizer has 280 ids, config.json has vocab_size=270"),
        ({"hidden_size": 64}, "embedding.weight is [41, 56] on tensor rank 0, config.json asks for [41, 64]"),
    ],
)
def test_a_config_of_another_model_is_refused(
    theirs: Path, released: Path, tmp_path: Path, change: dict[str, int], said: str
) -> None:
    shutil.copytree(released, tmp_path / "described")
    config = json.loads((released / "config.json").read_text())
    (tmp_path / "described" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=re.escape(said)):
        import_megatron(theirs, CheckpointStore(tmp_path / "ours"), described_by=tmp_path / "described")


def test_a_folder_without_such_files_or_description_is_named(theirs: Path, released: Path, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "ours")
    with pytest.raises(CheckpointError, match="has no layer_SS-model_TT-model_states.pt files"):
        import_megatron(released, store, described_by=released)
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        import_megatron(theirs, store, described_by=theirs)
    (tmp_path / "described").mkdir()
    shutil.copy(released / "config.json", tmp_path / "described")
    with pytest.raises(DataError, match="has no tokenizer.json"):
        import_megatron(theirs, store, described_by=tmp_path / "described")


class Intruder:
    """A pickle that makes a file when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_program_in_a_file_of_weights_is_not_run(theirs: Path, released: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with_values(3, 5, args=Intruder(trace))(theirs)
    with pytest.raises(CheckpointError, match="layer_03-model_05-model_states.pt"):
        import_megatron(theirs, CheckpointStore(tmp_path / "ours"), described_by=released)
    assert not trace.exists()
