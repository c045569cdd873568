"""Composing a config: what is accepted, and the one sentence for everything else."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from megatron_poro.config.load import compose, from_yaml, load_config, to_yaml
from megatron_poro.config.model import AlibiForm
from megatron_poro.config.run import PipelineSchedule, Precision, TruthCheck
from megatron_poro.errors import ConfigError
from tests.unit.config.configs import PORO, SMOKE


def refusal(*overrides: str, config_name: str = "train", config_dirs: tuple[Path, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides, config_name=config_name, config_dirs=config_dirs)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's own config folder; the name needs quoting nearly everywhere."""
    folder = tmp_path / "my configs, v2"
    (folder / "experiment").mkdir(parents=True)
    return folder


def experiment(folder: Path, text: str) -> tuple[str, tuple[Path, ...]]:
    (folder / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    return "experiment=mine", (folder,)


# --- what is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "tokens"), [("10B", 10**10), ("1.5T", 15 * 10**11), ("10_000", 10_000), ("163840", 163_840)]
)
def test_a_count_may_be_written_in_units_on_the_command_line(written: str, tokens: int) -> None:
    config = load_config([SMOKE, f"schedule.total_tokens={written}"])
    assert config.schedule.total_tokens == tokens
    assert type(config.schedule.total_tokens) is int


def test_a_count_may_be_written_in_units_in_yaml(folder: Path) -> None:
    name, folders = experiment(folder, "run: {name: mine}\nschedule: {total_tokens: 2.5M, global_batch_samples: 1k}\n")
    config = load_config([name, "schedule.learning_rate=1"], config_dirs=folders)
    assert (config.schedule.total_tokens, config.schedule.global_batch_samples) == (2_500_000, 1000)


def test_enums_are_written_by_value() -> None:
    config = load_config(
        [SMOKE, "engine.precision=fp32", "engine.pipeline_schedule=dualpipev", "model.alibi=historic_bf16"]
    )
    assert config.engine.precision is Precision.FP32
    assert config.engine.pipeline_schedule is PipelineSchedule.DUALPIPEV
    assert config.model.alibi is AlibiForm.HISTORIC_BF16


@pytest.mark.parametrize(
    ("written", "meant"),
    [("on", TruthCheck.ON), ("true", TruthCheck.ON), ("false", TruthCheck.OFF), ("auto", TruthCheck.AUTO)],
)
def test_on_and_off_may_be_booleans(written: str, meant: TruthCheck) -> None:
    assert load_config([SMOKE, f"engine.truth_check={written}"]).engine.truth_check is meant


def test_a_bare_off_in_yaml_is_off(folder: Path) -> None:
    name, folders = experiment(folder, "defaults: [smoke_cpu]\nengine: {truth_check: off}\n")
    assert load_config([name], config_dirs=folders).engine.truth_check is TruthCheck.OFF


def test_null_is_a_value_where_it_is_documented() -> None:
    assert load_config([PORO, "parallel.data=null"]).parallel.data is None


def test_one_value_of_one_source_may_be_overridden() -> None:
    config = load_config([SMOKE, "data.train.4.weight=1"])
    assert config.data.train[4].weight == 1.0
    assert type(config.data.train[4].weight) is float


def test_moving_the_data_is_one_override() -> None:
    config = load_config([PORO, "data.folder=/scratch/x"])
    assert config.data.train[0].path == "/scratch/x/train/merged_slimpajama"
    assert config.data.index_cache == "/scratch/x/index"


def test_a_folder_adds_experiments_and_primaries(folder: Path) -> None:
    name, folders = experiment(folder, "defaults: [smoke_cpu]\nrun: {name: mine}\n")
    assert load_config([name], config_dirs=folders).run.name == "mine"
    (folder / "mine.yaml").write_text("defaults: [train, _self_]\nrun: {name: other}\n", encoding="utf-8")
    needed = ["schedule.total_tokens=1M", "schedule.global_batch_samples=8", "schedule.learning_rate=1"]
    assert load_config(needed, config_name="mine", config_dirs=folders).run.name == "other"
    assert "no experiment/mine.yaml" in refusal(name)


def test_a_folder_cannot_replace_a_packaged_file(folder: Path) -> None:
    (folder / "experiment" / "smoke_cpu.yaml").write_text(
        "# @package _global_\nrun: {name: stolen}\n", encoding="utf-8"
    )
    assert load_config([SMOKE], config_dirs=[folder]).run.name == "smoke_cpu"


def test_composing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_config([SMOKE])
    assert list(tmp_path.iterdir()) == []
    assert not GlobalHydra.instance().is_initialized()


def test_composing_keeps_references_until_they_are_resolved() -> None:
    composed = compose([SMOKE])
    assert composed.schedule.total_tokens == "164k"
    assert "hydra" not in composed


NO_COUNT = "is not a count; write a whole number or one like 10B, 1.5T, 4M or 500k."


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("schedule.total_token=1", "schedule.total_token is not a config key; did you mean schedule.total_tokens?"),
        ("+schedule.totl=1", "schedule.totl is not a config key; did you mean schedule.total_tokens?"),
        ("++schedule.totl=1", "schedule.totl is not a config key; did you mean schedule.total_tokens?"),
        ("tensor=2", "tensor is not a config key; did you mean parallel.tensor?"),
        ("every_steps=2",
         "every_steps is not a config key; did you mean validation.every_steps or checkpoint.every_steps?"),
        ("modl=poro_34b", "modl is not a config key; did you mean model?"),
        ("experimnt=x", "experimnt is not a config key; did you mean experiment?"),
        ("data.train.0.wieght=1", "data.train[0].wieght is not a config key; did you mean data.train[0].weight?"),
        ("optimizer.zzz=1",
         "optimizer.zzz is not a config key; optimizer has beta1, beta2, epsilon, weight_decay and clip_norm."),
        ("nope.zzz=1",
         "nope is not a config key; the top level has run, model, parallel, engine, data, optimizer, schedule, "
         "validation, tokenizer, checkpoint, resume, export, guards, metrics, profile and experiment."),
        ("run.name.first=a", "run.name.first is not a config key; `poro config reference` lists all keys."),
    ],
)  # fmt: skip
def test_an_unknown_key_is_named_with_the_nearest_one(override: str, sentence: str) -> None:
    assert refusal(SMOKE, override) == sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("parallel.tensor=two", "parallel.tensor=two is not a whole number."),
        ("parallel.tensor=1.5", "parallel.tensor=1.5 is not a whole number."),
        ("parallel.tensor=true", "parallel.tensor=true is not a whole number."),
        ("parallel.tensor=null", "parallel.tensor=null is not a whole number."),
        ("schedule.learning_rate=fast", "schedule.learning_rate=fast is not a number."),
        ("schedule.learning_rate=true", "schedule.learning_rate=true is not a number."),
        ("metrics.wandb=1", "metrics.wandb=1 is not true or false."),
        ("run.name=1.5", "run.name=1.5 is not a text; put it in quotes if it is meant as one."),
        ("run.name=[a]", "run.name=['a'] is not a text; put it in quotes if it is meant as one."),
        ("engine.precision=bf17", "engine.precision=bf17 is not bf16 or fp32; the nearest is bf16."),
        ("engine.precision=true", "engine.precision=true is not bf16 or fp32."),
        ("engine.precision=half", "engine.precision=half is not bf16 or fp32."),
        ("schedule.total_tokens=-4", "schedule.total_tokens=-4 is negative; a count is 0 or more."),
        ("schedule.total_tokens=10X", f"schedule.total_tokens=10X {NO_COUNT}"),
        ("schedule.total_tokens=1e12",
         "schedule.total_tokens=1e+12 is a floating-point number and counts are exact; write 1000B."),
        ("schedule.total_tokens=1.5", f"schedule.total_tokens=1.5 {NO_COUNT}"),
        ("schedule.decay_tokens=soon", f"schedule.decay_tokens=soon {NO_COUNT}"),
        ("data.train=3", "data.train is a list; write data.train=[...]."),
        ("data.train={a: 1}", "data.train is a list; write data.train=[...]."),
        ("data.train=[3]", "data.train[0]=3 is not a section; give its keys one by one (name, path, weight, "
         "start, end, published_tokens, remark)."),
        ("data.train=[{name: a, path: b, weight: c}]", "data.train[0].weight=c is not a number."),
        ("data.train.9.weight=1", "data.train.9.weight=1: the list is not that long (list index out of range)."),
        ("run=3", "run is a section and has no value of its own; set its keys, run.<key>=value."),
        ("schedule=3", "A config group takes the name of one of its files, such as schedule=cosine or model=poro_34b."),
        ("~parallel.tensor", "~parallel.tensor: a key cannot be taken out of the config; give it another value."),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_named_with_its_key(override: str, sentence: str) -> None:
    assert refusal(SMOKE, override) == sentence


def test_every_wrong_value_is_reported_at_once() -> None:
    text = refusal(SMOKE, "parallel.tensor=x", "optimizer.beta1=y", "data.train=[{name: a}]")
    assert [line.split()[0] for line in text.splitlines()] == [
        "parallel.tensor=x",
        "data.train[0].path",
        "data.train[0].weight",
        "optimizer.beta1=y",
    ]


def test_what_has_no_value_is_listed_with_its_meaning() -> None:
    lines = refusal().splitlines()
    assert [line.split()[0] for line in lines] == [
        "run.name", "schedule.total_tokens", "schedule.global_batch_samples", "schedule.learning_rate",
    ]  # fmt: skip
    assert lines[3] == (
        "schedule.learning_rate has no value; add schedule.learning_rate=... (Highest learning rate, reached at the "
        "end of the warm-up)."
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("run.name=${oc.env:PORO_NOT_SET}",
         "run.name cannot be resolved (Environment variable 'PORO_NOT_SET' not found)."),
        ("run.name=${run.nmae}",
         "run.name refers to a key that does not exist (Interpolation key 'run.nmae' not found)."),
        ("data.folder=???", "data.train[0].path cannot be resolved (Missing mandatory value: data.folder)."),
        ("run.name=${secret:x}", "run.name cannot be resolved (Unsupported interpolation type secret)."),
    ],
)  # fmt: skip
def test_a_reference_that_leads_nowhere_is_named(override: str, sentence: str) -> None:
    assert refusal(SMOKE, override) == sentence


@pytest.mark.parametrize(
    "override", ["schedule.total_tokens", "", "a b=3", "parallel.tensor=[1,", "data.train[0].weight=1", "run.name=${x"]
)
def test_a_word_that_is_no_override_is_quoted_back(override: str) -> None:
    text = refusal(SMOKE, override)
    assert text.startswith(f"{override!r} is not an override; write key=value")
    assert "\n" not in text


@pytest.mark.parametrize("override", ["data.train.first=1", "~data.train.0"])
def test_an_override_that_hydra_trips_over_is_refused_in_one_sentence(override: str) -> None:
    text = refusal(SMOKE, override)
    assert text.startswith("The config cannot be composed (")
    assert "\n" not in text


def test_a_sweep_is_refused() -> None:
    assert refusal(SMOKE, "parallel.tensor=1,2").startswith(
        "parallel.tensor=1,2 gives several values, and a run takes one"
    )
    assert "a run takes one" in refusal(SMOKE, "parallel.tensor=choice(1,2)")


def test_an_unknown_experiment_lists_what_there_is() -> None:
    assert refusal("experiment=smoke") == (
        "experiment=smoke: there is no experiment/smoke.yaml; did you mean smoke_cpu? Use poro_34b or smoke_cpu."
    )
    assert refusal(SMOKE, "model=poro") == (
        "model=poro: there is no model/poro.yaml; did you mean poro_34b? Use bloom_debug or poro_34b."
    )


def test_an_unknown_primary_and_a_missing_folder_are_named() -> None:
    assert refusal(config_name="nope").startswith("there is no config nope.yaml")
    assert refusal(SMOKE, config_dirs=(Path("/not/there"),)).startswith("--config-dir /not/there is not a folder")


def test_choosing_a_group_twice_is_refused() -> None:
    assert refusal(SMOKE, "+experiment=poro_34b").startswith("experiment is chosen twice")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("schedule: {totl_tokens: 1}\n",
         "In experiment/mine.yaml: schedule.totl_tokens is not a config key; did you mean schedule.total_tokens?"),
        ("defaults: [override /modl: a]\n",
         "modl is not a config group that can be overridden; the groups are the folders of configs/."),
        ("defaults: [override /model: a]\n", "model=a: there is no model/a.yaml; use bloom_debug or poro_34b."),
        ("defaults: [smoke_cpu]\ndata: {train: [{name: a, path: b, wait: 1}]}\n",
         "data.train[0].wait is not a config key; did you mean data.train[0].weight?\n"
         "data.train[0].weight has no value; add data.train[0].weight=... (Share of the samples; the weights of a "
         "mixture are normalised to sum 1)."),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_named(folder: Path, text: str, sentence: str) -> None:
    name, folders = experiment(folder, text)
    assert refusal(name, config_dirs=folders) == sentence


def test_broken_yaml_is_named_with_its_line(folder: Path) -> None:
    name, folders = experiment(folder, "schedule:\n  learning_rate: [1\n")
    text = refusal(name, config_dirs=folders)
    assert "mine.yaml, line 4:" in text
    assert "\n" not in text


# --- the resolved config ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SMOKE, PORO])
def test_the_resolved_config_reads_back_the_same(name: str, tmp_path: Path) -> None:
    config = load_config([name])
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert from_yaml(path) == config
    assert "${" not in to_yaml(config)


def test_a_resolved_config_of_an_older_version_takes_new_defaults(tmp_path: Path) -> None:
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(load_config([SMOKE])).replace("  wandb_project: megatron_poro\n", ""), encoding="utf-8")
    assert from_yaml(path).metrics.wandb_project == "megatron_poro"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("- 1\n", "is a list, not the config of a run"),
        ("run: {nmae: a}\n", "run.nmae is not a config key; did you mean run.name?"),
        ("run: [\n", "line 2:"),
        ("run: 3\n", "run=3 is not a section"),
        ("schedule: null\n", "schedule=null is not a section"),
    ],
)
def test_a_file_that_is_no_resolved_config_is_named(text: str | None, part: str, tmp_path: Path) -> None:
    path = tmp_path / "resolved.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        from_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert part in str(caught.value)


def test_every_dataclass_field_is_filled_with_its_type() -> None:
    def check(value: object) -> None:
        for field in dataclasses.fields(value):  # type: ignore[arg-type]
            inner = getattr(value, field.name)
            assert inner != "???", field.name
            if dataclasses.is_dataclass(inner):
                check(inner)
            if field.metadata.get("count"):
                assert inner is None or type(inner) is int, field.name

    check(load_config([PORO]))


def test_loading_and_planning_do_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from megatron_poro.config import load, reference, validate, identity, command_line\n"
        "from megatron_poro.schedule import plan\n"
        "config = load.load_config(['experiment=poro_34b'])\n"
        "validate.validate(config, world_size=1024); plan.plan_run(config); identity.fingerprint(config)\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'deepspeed', 'transformers')))\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
