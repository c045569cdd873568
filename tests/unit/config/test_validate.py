"""Every rule refuses what it is for, accepts what lies just inside, and names keys, values and what would work."""

from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from megatron_poro.config.fit_rules import FIT_RULES
from megatron_poro.config.run import EngineKind, PipelineSchedule, Recompute, TrainConfig
from megatron_poro.config.validate import validate
from megatron_poro.config.value_rules import VALUE_RULES
from megatron_poro.errors import ConfigError
from tests.unit.config.configs import PORO, SMOKE, changed

DUAL: dict[str, Any] = {"engine__pipeline_schedule": PipelineSchedule.DUALPIPEV}
LOCAL: dict[str, Any] = {"engine__kind": EngineKind.LOCAL, "parallel__tensor": 1, "parallel__pipeline": 1}

# rule, what breaks it, (number of processes), the sentence, and what lies just inside
CASES: list[tuple[str, dict[str, Any], int | None, str, dict[str, Any]]] = [
    ("run_name_is_a_folder_name", {"run__name": "a/b"}, None,
     "run.name=a/b cannot name a folder; use up to 128 letters, digits, dots, dashes and underscores, with a letter or "
     "digit first.", {"run__name": "a.b-c_1"}),
    ("run_name_is_a_folder_name", {"run__name": ".."}, None, "run.name=.. cannot name a folder; ", {"run__name": "0"}),
    ("run_name_is_a_folder_name", {"run__name": "a" * 129}, None, "run.name=aaa", {"run__name": "a" * 128}),
    ("texts_are_not_empty", {"data__train__1__path": " "}, None, "data.train[1].path is empty; give it a text.",
     {"data__train__1__path": "x"}),
    ("texts_are_not_empty", {"tokenizer__path": ""}, None, "tokenizer.path is empty; give it a text.",
     {"tokenizer__path": "x"}),
    ("family_is_known", {"model__family": "gpt"}, None, "model.family=gpt is not known; use bloom.",
     {"model__family": "bloom"}),
    ("sizes_are_positive", {"model__num_heads": 0}, None, "model.num_heads=0 must be at least 1.",
     {"model__num_heads": 2}),
    ("sizes_are_positive", {"parallel__data": 0}, None, "parallel.data=0 must be at least 1.",
     {"parallel__data": None}),
    ("sizes_are_positive", {"run__stop_after_steps": 0}, None, "run.stop_after_steps=0 must be at least 1.",
     {"run__stop_after_steps": 1}),
    ("accepted_keys_exist", {"resume__accept": ["schedule.global_batch_samples"]}, None,
     "resume.accept=schedule.global_batch_samples defines the run and can never differ; start a new run under another "
     "name.", {"resume__accept": ["schedule.learning_rate"]}),
    ("accepted_keys_exist", {"resume__accept": ["optimiser.*"]}, None,
     "resume.accept=optimiser.* is no key that could be accepted; use keys of optimizer and schedule, or patterns such "
     "as optimizer.*.", {"resume__accept": ["optimizer.*"]}),
    ("profiled_steps_are_a_range", {"profile__steps": "10-12"}, None,
     "profile.steps=10-12 names no steps; write FIRST:LAST, both included and counted from 1, in a file with quotes: "
     '"10:12".', {"profile__steps": "10:12"}),
    ("profiled_steps_are_a_range", {"profile__steps": "13:12"}, None, "profile.steps=13:12 names no steps; ",
     {"profile__steps": "12:12"}),
    ("profiled_steps_are_a_range", {"profile__steps": "0:3"}, None, "profile.steps=0:3 names no steps; ",
     {"profile__steps": "1:3"}),
    ("profiled_steps_are_taken", {"profile__steps": "80:81"}, None,
     "profile.steps=80:81 goes on to step 81, but the run ends after step 80 (schedule.total_tokens). Name earlier "
     "steps, or train longer.", {"profile__steps": "79:80"}),
    ("profiled_steps_are_taken", {"profile__steps": "5:9", "run__stop_after_steps": 8}, None,
     "profile.steps=5:9 goes on to step 9, but the run ends after step 8 (run.stop_after_steps).",
     {"profile__steps": "5:8", "run__stop_after_steps": 8}),
    ("guards_can_tell_good_from_bad", {"guards__spike_sigma": 1.0}, None,
     "guards.spike_sigma=1 must be at least 2, or 0 to switch it off.", {"guards__spike_sigma": 0.0}),
    ("guards_can_tell_good_from_bad", {"guards__hang_seconds": 0.5}, None,
     "guards.hang_seconds=0.5 must be at least 1, or 0 to switch it off.", {"guards__hang_seconds": 1.0}),
    ("epochs_are_limited_above_zero", {"data__max_epochs": 0.0}, None,
     "data.max_epochs=0 must be more than 0; null sets no limit.", {"data__max_epochs": 0.5}),
    ("intervals_are_not_negative", {"checkpoint__every_steps": -1}, None,
     "checkpoint.every_steps=-1 must be a number of steps, or 0 for never.", {"checkpoint__every_steps": 0}),
    ("waiting_passes_are_not_negative", {"engine__deferred_weight_gradients": -1}, None,
     "engine.deferred_weight_gradients=-1 must be a number of microbatches, 0 or above; null computes weight gradients "
     "inside of backward passes.", {"engine__deferred_weight_gradients": 0}),
    ("seeds_fit_their_generators", {"data__shuffle_seed": 2**32}, None,
     "data.shuffle_seed=4294967296 must be from 0 to 2^32 - 1.", {"data__shuffle_seed": 2**32 - 1}),
    ("seeds_fit_their_generators", {"run__seed": -1}, None, "run.seed=-1 must be from 0 to 2^63 - 1.",
     {"run__seed": 2**32}),
    ("probabilities_are_below_one", {"model__hidden_dropout": 1.0}, None,
     "model.hidden_dropout=1.0 must be at least 0 and below 1.", {"model__hidden_dropout": 0.999}),
    ("probabilities_are_below_one", {"optimizer__beta2": float("nan")}, None,
     "optimizer.beta2=nan must be at least 0 and below 1.", {"optimizer__beta2": 0.0}),
    ("scales_are_positive", {"schedule__learning_rate": float("inf")}, None,
     "schedule.learning_rate=inf must be a number above 0.", {"schedule__learning_rate": 1.0}),
    ("scales_are_positive", {"metrics__peak_tflops": 0.0}, None, "metrics.peak_tflops=0.0 must be a number above 0.",
     {"metrics__peak_tflops": None}),
    ("scales_are_positive", {"run__lease_seconds": 0.0}, None, "run.lease_seconds=0.0 must be a number above 0.",
     {"run__lease_seconds": 1.0}),
    ("penalties_are_not_negative", {"optimizer__clip_norm": -1.0}, None,
     "optimizer.clip_norm=-1.0 must be a number, 0 or above.", {"optimizer__clip_norm": 0.0}),
    ("weights_are_positive", {"data__validation__5__weight": 0.0}, None,
     "data.validation[5].weight=0.0 (gutenberg) must be a number above 0; leave out a source that is not wanted.",
     {"data__validation__5__weight": 1e-9}),
    ("document_fractions_are_in_order", {"data__train__0__start": 0.5, "data__train__0__end": 0.5}, None,
     "data.train[0].start=0.5 and data.train[0].end=0.5 (slimpajama) must be fractions of the documents, 0 <= start < "
     "end <= 1.", {"data__train__0__start": 0.5}),
    ("document_fractions_are_in_order", {"data__train__0__end": 1.5}, None,
     "data.train[0].start=0.0 and data.train[0].end=1.5 (slimpajama) must be fractions of the documents, 0 <= start < "
     "end <= 1.", {"data__train__0__end": 0.05}),
    ("heads_divide_hidden_size", {"model__num_heads": 6, "parallel__tensor": 1}, None,
     "model.num_heads=6 does not divide model.hidden_size=128. Use 4 or 8 heads, or a hidden size that is a "
     "multiple of 6.", {"model__num_heads": 8}),
    ("tensor_divides_model", {"parallel__tensor": 8, "model__hidden_size": 144, "model__num_heads": 12}, None,
     "parallel.tensor=8 does not divide model.num_heads=12. Use 1, 2 or 4 (heads and vocabulary must both be "
     "divisible), or change the model.", {"parallel__tensor": 4}),
    ("tensor_divides_model", {"model__vocab_size": 4097}, None,
     "parallel.tensor=2 does not divide model.vocab_size=4097. Use 1 (heads and", {"model__vocab_size": 4098}),
    ("tensor_divides_sequence", {"parallel__sequence": True, "data__sequence_length": 127}, None,
     "parallel.sequence=true cuts data.sequence_length=127 over parallel.tensor=2, which does not divide it. Use a "
     "length of 126 or 128, or parallel.sequence=false.", {"parallel__sequence": True, "data__sequence_length": 126}),
    ("layers_fill_stages", {"parallel__pipeline": 7}, None,
     "parallel.pipeline=7 with engine.pipeline_schedule=1f1b needs 7 stages, but model.num_layers=4 with embedding and "
     "head makes 6 layers. Use parallel.pipeline=6 or less, or a deeper model.", {"parallel__pipeline": 6}),
    ("layers_fill_stages", {"parallel__pipeline": 4, **DUAL}, None,
     "parallel.pipeline=4 with engine.pipeline_schedule=dualpipev needs 8 stages, but model.num_layers=4 with "
     "embedding and head makes 6 layers. Use parallel.pipeline=3 or less, or a deeper model.",
     {"parallel__pipeline": 3, **DUAL}),
    ("grid_is_the_world", {"parallel__data": 4}, 8,
     "parallel.tensor=2 x parallel.pipeline=2 x parallel.data=4 is 16 processes, but this run has 8. Start 16 "
     "processes, or set parallel.data=2.", {"parallel__data": 2}),
    ("grid_is_the_world", {"parallel__data": 2}, 6,
     "parallel.tensor=2 x parallel.pipeline=2 x parallel.data=2 is 8 processes, but this run has 6. Start 8 processes.",
     {"parallel__tensor": 1, "parallel__data": 3, "schedule__global_batch_samples": 12}),
    ("grid_is_the_world", {}, 6,
     "parallel.tensor=2 x parallel.pipeline=2 is 4 processes per model, which does not divide the 6 processes of this "
     "run. Start a multiple of 4 processes, or choose sizes whose product divides 6.",
     {"parallel__tensor": 1, "parallel__pipeline": 3, "parallel__data": 2}),
    ("microbatches_fill_the_batch", {"schedule__global_batch_samples": 18, "parallel__data": 4}, None,
     "schedule.global_batch_samples=18 is not a multiple of engine.microbatch_samples=2 times 4 replicas "
     "(parallel.data). Use 16 or 24, or other microbatches or replicas.",
     {"schedule__global_batch_samples": 24, "parallel__data": 4}),
    ("microbatches_fill_the_batch", {"schedule__global_batch_samples": 3}, None, "Use 2 or 4, or other",
     {"schedule__global_batch_samples": 2}),
    ("microbatches_fill_the_batch", {"schedule__global_batch_samples": 6}, 8,
     "times 2 replicas (parallel.data). Use 4 or 8, or other", {"schedule__global_batch_samples": 8}),
    ("local_engine_is_one_process", {"engine__kind": EngineKind.LOCAL}, None,
     "engine.kind=local is one process, not 4 (parallel.tensor=2, parallel.pipeline=2, parallel.data=1). Use "
     "engine=deepspeed, or start one process with parallel=single.", LOCAL),
    ("compiled_code_is_not_reproducible", {"engine__compile": True, "engine__reproducible": True}, None,
     "engine.compile=true gives bits that depend on the compiler, and engine.reproducible=true promises the same ones "
     "everywhere. Set one of them to false.", {"engine__compile": True}),
    ("recomputed_blocks_are_there", {"engine__recompute_blocks": [1, 2], "engine__recompute": Recompute.NONE}, None,
     "engine.recompute_blocks=[1, 2] has no meaning with engine.recompute=none. Set engine.recompute to selective or "
     "full, or engine.recompute_blocks to null.",
     {"engine__recompute_blocks": [1, 2], "engine__recompute": Recompute.SELECTIVE}),
    ("recomputed_blocks_are_there", {"engine__recompute_blocks": [1]}, None,
     "engine.recompute_blocks=[1] has 1 numbers, but parallel.pipeline=2. Give one number for each pipeline rank, or "
     "null for all blocks.", {"engine__recompute_blocks": [1, 0]}),
    ("recomputed_blocks_are_there", {"engine__recompute_blocks": [3, 2]}, None,
     "engine.recompute_blocks=[3, 2] asks for 5 blocks, of model.num_layers=4. Use numbers that are each at most the "
     "blocks of their pipeline rank.", {"engine__recompute_blocks": [2, 2]}),
    ("recomputed_blocks_are_there", {"engine__recompute_blocks": [-1, 2]}, None,
     "engine.recompute_blocks[0]=-1 is below 0. Use 0 to recompute no block of pipeline rank 0, or at most as many as "
     "it has.", {"engine__recompute_blocks": [0, 2]}),
    ("local_engine_is_one_process", LOCAL, 2, "engine.kind=local is one process, not 2 (", {"parallel__pipeline": 1}),
    ("deferral_has_a_pipeline", {"engine__deferred_weight_gradients": 1, **DUAL}, None,
     "engine.deferred_weight_gradients=1 is for engine.pipeline_schedule=1f1b, not dualpipev. Use 1f1b, or set "
     "engine.deferred_weight_gradients=null.", DUAL),
    ("deferral_has_a_pipeline", {"engine__deferred_weight_gradients": 0, "parallel__pipeline": 1}, None,
     "engine.deferred_weight_gradients=0 needs parallel.pipeline of 2 or more, not 1: one stage waits for no other. "
     "Set engine.deferred_weight_gradients=null.", {"engine__deferred_weight_gradients": 0}),
    ("deferral_has_a_pipeline", {"engine__deferred_weight_gradients": 2}, None,
     "engine.deferred_weight_gradients=2 is more than any of parallel.pipeline=2 ranks has use for. Use 1, or less to "
     "save memory.", {"engine__deferred_weight_gradients": 1}),
    ("dualpipev_fits", {"parallel__pipeline": 1, **DUAL}, None,
     "engine.pipeline_schedule=dualpipev needs parallel.pipeline of 2 or more, not 1. Use 1f1b.", DUAL),
    ("dualpipev_fits", {"schedule__global_batch_samples": 6, **DUAL}, None,
     "engine.pipeline_schedule=dualpipev with parallel.pipeline=2 needs 4 microbatches per step, but "
     "schedule.global_batch_samples=6 makes 3. Use 8 samples or more, smaller microbatches, or 1f1b.",
     {"schedule__global_batch_samples": 8, **DUAL}),
    ("schedule_is_in_order", {"schedule__total_tokens": 2047, "schedule__warmup_tokens": 0, "export__every_tokens": 0},
     None, "schedule.total_tokens=2047 is less than one step of 2048 tokens (schedule.global_batch_samples * "
     "data.sequence_length). Train longer, or on smaller batches.",
     {"schedule__total_tokens": 2048, "schedule__warmup_tokens": 0}),
    ("schedule_is_in_order", {"schedule__warmup_tokens": 165_000, "schedule__decay_tokens": 200_000}, None,
     "schedule.warmup_tokens=165k passes schedule.total_tokens=164k. The warm-up lies inside both, since all are "
     "counted from the start of the run; shorten it.",
     {"schedule__warmup_tokens": 164_000, "schedule__decay_tokens": 200_000}),
    ("schedule_is_in_order", {"schedule__warmup_tokens": 9000, "schedule__decay_tokens": 8000}, None,
     "schedule.warmup_tokens=9k passes schedule.decay_tokens=8k. ", {"schedule__decay_tokens": 10**12}),
    ("schedule_is_in_order", {"schedule__min_learning_rate": 0.5}, None,
     "schedule.min_learning_rate=0.5 is above schedule.learning_rate=0.003. Swap them, or lower the first.",
     {"schedule__min_learning_rate": 0.003}),
    ("mixtures_are_complete", {"data__train": []}, None,
     "data.train is empty; choose a mixture with data=... or list its sources.", {"data__validation": []}),
    ("mixtures_are_complete", {"data__train__1__name": "slimpajama"}, None,
     "data.train has 2 sources called slimpajama; metrics go by this name, so change one.",
     {"data__validation__1__name": "other"}),
    ("validation_has_samples", {"validation__samples": 0}, None,
     "validation.every_steps=20 with validation.samples=0 validates nothing. Set validation.samples, or "
     "validation.every_steps=0 to switch it off.", {"validation__samples": 0, "data__validation": []}),
    ("milestones_are_steps_apart", {"export__every_tokens": 2047}, None,
     "export.every_tokens=2047 is less than one step of 2048 tokens. Use 2048 or more, or 0 for the end of the "
     "run only.",
     {"export__every_tokens": 2048}),
]  # fmt: skip
IDS = [f"{rule}-{number}" for number, (rule, *_) in enumerate(CASES)]


def problems(config: TrainConfig, world_size: int | None) -> list[str]:
    try:
        validate(config, world_size=world_size)
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(("rule", "breaking", "world_size", "sentence", "inside"), CASES, ids=IDS)
def test_a_rule_refuses_what_it_is_for(
    rule: str, breaking: dict[str, Any], world_size: int | None, sentence: str, inside: dict[str, Any]
) -> None:
    found = problems(changed(SMOKE, **breaking), world_size)
    assert len(found) == 1, found
    assert sentence in found[0]


@pytest.mark.parametrize(("rule", "breaking", "world_size", "sentence", "inside"), CASES, ids=IDS)
def test_a_rule_accepts_what_lies_just_inside(
    rule: str, breaking: dict[str, Any], world_size: int | None, sentence: str, inside: dict[str, Any]
) -> None:
    # The number of processes belongs to the mistake, except where it is the subject.
    assert problems(changed(SMOKE, **inside), world_size if rule == "grid_is_the_world" else None) == []


@pytest.mark.parametrize(("rule", "breaking", "world_size", "sentence", "inside"), CASES, ids=IDS)
def test_no_other_rule_says_the_same(
    rule: str, breaking: dict[str, Any], world_size: int | None, sentence: str, inside: dict[str, Any]
) -> None:
    """Without its rule, each of the mistakes above would pass."""
    config = changed(SMOKE, **breaking)
    speaking = {other.__name__ for other in VALUE_RULES if list(other(config))}
    if not speaking:
        speaking = {other.__name__ for other in FIT_RULES if list(other(config, world_size))}
    assert speaking == {rule}


def test_every_rule_has_a_case() -> None:
    assert {rule for rule, *_ in CASES} == {rule.__name__ for rule in (*VALUE_RULES, *FIT_RULES)}


def test_all_problems_are_reported_at_once() -> None:
    config = changed(SMOKE, parallel__tensor=3, parallel__pipeline=9, validation__samples=0)
    assert [line.split()[0].split("=")[0] for line in problems(config, None)] == [
        "parallel.tensor", "parallel.tensor", "parallel.pipeline", "validation.every_steps",
    ]  # fmt: skip


def test_fit_is_only_judged_once_each_value_is_right() -> None:
    config = changed(SMOKE, model__num_heads=0, data__sequence_length=0, engine__microbatch_samples=0, parallel__data=0)
    assert all(line.endswith("must be at least 1.") for line in problems(config, 4))


@pytest.mark.parametrize(("name", "world_sizes"), [(SMOKE, [None, 4, 8, 16]), (PORO, [None, 1024])])
def test_the_experiments_are_valid_at_the_sizes_they_name(name: str, world_sizes: list[int | None]) -> None:
    for world_size in world_sizes:
        assert problems(changed(name), world_size) == []


def test_poro_34b_refuses_another_number_of_processes() -> None:
    (sentence,) = problems(changed(PORO), 512)
    assert "is 1024 processes, but this run has 512" in sentence
    assert "parallel.data=64" in sentence


def test_no_number_of_the_config_goes_unchecked() -> None:
    """Each number, set far below its range, is refused; ``changed`` would fail for a key that no longer exists."""
    missed = []
    for key in _numbers(changed(SMOKE)):
        config = changed(SMOKE, **{key: -1})
        if not problems(config, None):
            missed.append(key)
    assert missed == []


def _numbers(section: Any, prefix: str = "") -> list[str]:
    """Keys of all numbers but counts, which are refused below 0 when they are read."""
    keys = []
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            keys += _numbers(value, f"{prefix}{field.name}__")
        elif isinstance(value, int | float) and not isinstance(value, bool) and not field.metadata.get("count"):
            keys.append(f"{prefix}{field.name}")
    return keys
