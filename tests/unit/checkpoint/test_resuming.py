"""Which run may continue from which checkpoint, and what a refusal says."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_poro.checkpoint.resuming import load
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.continuation import differing_values
from megatron_poro.config.data import SourceConfig
from megatron_poro.config.identity import Difference
from megatron_poro.config.run import ParallelConfig, Recompute, ResumeConfig, TrainConfig
from megatron_poro.engine.engine import Fragment, FragmentKind
from megatron_poro.errors import CheckpointError
from megatron_poro.parallel.shards import ShardSpec
from tests.unit.checkpoint.fake_engine import CONFIG, FakeEngine, run_state

FINGERPRINT = "ab" * 32


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(CheckpointStore(tmp_path), FakeEngine(), run_state(5))


def refusal(path: Path, engine: FakeEngine, *, config: TrainConfig = CONFIG, fingerprint: str = FINGERPRINT) -> str:
    """What the refusal says; nothing may have been written into the engine."""
    before = [fragment.flat.clone() for fragment in engine.fragments()]
    with pytest.raises(CheckpointError) as caught:
        load(path, engine, config=config, tokenizer_fingerprint=fingerprint)
    assert engine.loaded_step is None
    for fragment, was in zip(engine.fragments(), before, strict=True):
        assert torch.equal(fragment.flat, was)
    return str(caught.value)


def test_another_tokenizer_is_refused_with_both_fingerprints(saved: Path) -> None:
    said = refusal(saved, FakeEngine(), fingerprint="cd" * 32)
    assert "tokenizer of fingerprint abababababab, tokenizer.path has cdcdcdcdcdcd" in said


def changed(section: str | None, **values: Any) -> TrainConfig:
    """The run's config with some values of a section changed."""
    if section is None:
        return dataclasses.replace(CONFIG, **values)
    return dataclasses.replace(CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **values)})


def sources(*names: str, path: str = "data/one") -> list[SourceConfig]:
    return [SourceConfig(name=name, path=path, weight=1.0) for name in names]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed("model", hidden_size=16), "model.hidden_size was 8, is now 16"),
        (changed("model", num_heads=4), "model.num_heads was 2, is now 4"),
        (changed("data", sequence_length=32), "data.sequence_length was 16, is now 32"),
        (changed("schedule", global_batch_samples=8), "schedule.global_batch_samples was 4, is now 8"),
        (changed("schedule", total_tokens=64), "schedule.total_tokens was 6400, is now 64"),
        (changed("data", shuffle_seed=43), "data.shuffle_seed was 42, is now 43"),
        (changed("run", seed=8), "run.seed was 7, is now 8"),
        (changed("data", train=sources("two")), "data.train[0].name was one, is now two"),
        (changed("data", train=sources("one", "two")), "data.train[1].name was (absent), is now two"),
    ],
)
def test_a_setting_that_defines_the_run_is_refused_with_both_values(
    saved: Path, config: TrainConfig, said: str
) -> None:
    assert said in refusal(saved, FakeEngine(), config=config)


@pytest.mark.parametrize(
    "config",
    [
        changed("run", name="other", root="elsewhere", stop_after_steps=3),
        changed("parallel", tensor=2, pipeline=4),
        changed("engine", recompute=Recompute.NONE, microbatch_samples=4),
        changed("data", train=sources("one", path="/moved/one"), index_cache="elsewhere"),
        changed("checkpoint", every_steps=7),
    ],
)
def test_what_is_not_part_of_the_run_may_change(saved: Path, config: TrainConfig) -> None:
    engine = FakeEngine(filled=False)
    load(saved, engine, config=config, tokenizer_fingerprint=FINGERPRINT)
    assert engine.wrong_fragments() == []


def test_a_key_that_only_one_release_knows_is_not_compared() -> None:
    assert differing_values({"model.a": 1, "model.b": 2}, {"model.b": 2, "model.c": 3}) == []
    assert differing_values({"model.a": 1, "model.b": 2}, {"model.a": 1, "model.b": 3}) == [Difference("model.b", 2, 3)]


def replace(engine: FakeEngine, name: str, shape: tuple[int, ...] | None, *, new_name: str | None = None) -> None:
    """Drops a parameter from an engine, or gives it another shape or name."""
    kept = [fragment for fragment in engine._fragments if fragment.name != name]
    if shape is not None:
        flat = torch.zeros(ShardSpec(shape).full_shape).view(-1)
        kept += [Fragment(new_name or name, kind, flat, 0, ShardSpec(shape), is_owner=True) for kind in FragmentKind]
    engine._fragments = kept


def test_a_parameter_of_another_shape_is_named_with_both_shapes(saved: Path) -> None:
    engine = FakeEngine()
    replace(engine, "blocks.0.up.bias", (13,))
    assert "its blocks.0.up.bias (exp_avg) is [12], the model's is [13]" in refusal(saved, engine)


def test_a_parameter_the_checkpoint_lacks_is_named(saved: Path) -> None:
    engine = FakeEngine()
    replace(engine, "blocks.1.scale", (1,), new_name="blocks.2.scale")
    said = refusal(saved, engine)
    assert "it has no blocks.2.scale (exp_avg)" in said
    assert "(and 3 more)" in said


def test_a_parameter_the_model_lacks_is_named(saved: Path) -> None:
    engine = FakeEngine()
    replace(engine, "final_norm.weight", None)
    assert "its final_norm.weight (master) is not in the model" in refusal(saved, engine)


def test_how_the_run_learns_may_change_only_where_it_is_accepted(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = changed("optimizer", weight_decay=0.2)
    said = refusal(saved, FakeEngine(), config=config)
    assert "optimizer.weight_decay was 0.1, is now 0.2" in said
    assert "resume.accept=[optimizer.weight_decay]" in said
    accepting = dataclasses.replace(config, resume=ResumeConfig(accept=["optimizer.*"]))
    engine = FakeEngine(filled=False)
    load(saved, engine, config=accepting, tokenizer_fingerprint=FINGERPRINT)
    assert engine.wrong_fragments() == []
    assert "accepted since step_00000005: optimizer.weight_decay was 0.1, is now 0.2" in caplog.text


def test_every_other_difference_is_told_in_a_line_of_its_own(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    config = dataclasses.replace(
        changed("checkpoint", every_steps=7, keep_last=9), parallel=ParallelConfig(tensor=2, pipeline=4, sequence=True)
    )
    load(saved, FakeEngine(filled=False), config=config, tokenizer_fingerprint=FINGERPRINT)
    told = [record.message for record in caplog.records if record.message.startswith("changed since")]
    assert told == [
        "changed since step_00000005: parallel.tensor was 1, is now 2",
        "changed since step_00000005: parallel.pipeline was 1, is now 4",
        "changed since step_00000005: parallel.sequence was False, is now True",
        "changed since step_00000005: checkpoint.every_steps was 0, is now 7",
        "changed since step_00000005: checkpoint.keep_last was 2, is now 9",
    ]


def with_decay(names: set[str]) -> FakeEngine:
    """An engine whose optimizer decays these parameters."""
    engine = FakeEngine()
    engine._fragments = [dataclasses.replace(one, is_decayed=one.name in names) for one in engine.fragments()]
    return engine


def test_a_parameter_that_moved_between_the_optimizers_groups_is_named(tmp_path: Path) -> None:
    names = {fragment.name for fragment in FakeEngine().fragments()}
    before = names - {"final_norm.weight"}
    state = dataclasses.replace(run_state(5), decayed=sorted(before))
    path = save(CheckpointStore(tmp_path), with_decay(before), state)
    said = refusal(path, with_decay(names))
    assert "optimizer.groups was final_norm.weight not decayed, is now final_norm.weight decayed" in said
    load(path, with_decay(before), config=CONFIG, tokenizer_fingerprint=FINGERPRINT)
    accepting = dataclasses.replace(CONFIG, resume=ResumeConfig(accept=["optimizer.groups"]))
    load(path, with_decay(names), config=accepting, tokenizer_fingerprint=FINGERPRINT)
