"""The YAML files: all of them compose, and the experiments are the runs they claim to be."""

from pathlib import Path
from typing import Any

import pytest

from megatron_poro.config import paths
from megatron_poro.config.load import load_config
from megatron_poro.config.model import AlibiForm
from megatron_poro.config.paths import config_dir
from megatron_poro.config.run import EngineKind, LearningRateKind, PipelineSchedule, Precision, Recompute, StageSplit
from megatron_poro.config.validate import validate
from megatron_poro.errors import ConfigError
from tests.unit.config.configs import PORO, SMOKE, changed

FILES = sorted(
    path.relative_to(config_dir())
    for path in config_dir().glob("*/*.yaml")
    if path.parent.name not in (paths.CARDS_FOLDER, "cluster", "hardware")  # no parts of a run's config
)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_of_every_group_composes(file: Path) -> None:
    group, choice = file.parent.as_posix(), file.stem
    base = [] if group == "experiment" else [SMOKE]
    load_config([*base, f"{group}={choice}"])


@pytest.mark.parametrize("file", [*FILES, Path("train.yaml")], ids=str)
def test_every_file_opens_by_saying_what_it_is(file: Path) -> None:
    lines = (config_dir() / file).read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0] == "# @package _global_" else lines[0]
    assert first.startswith("# ")
    assert len(first) > 20


def test_there_are_experiments_to_compose() -> None:
    assert {path.stem for path in FILES if path.parent.name == "experiment"} >= {"smoke_cpu", "poro_34b"}


def test_configs_are_found_in_the_package_or_else_in_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "pkg" / "config" / "paths.py"))
    with pytest.raises(ConfigError, match=r"neither in .*pkg/configs .* nor in .*configs"):
        config_dir()
    checkout = tmp_path / "configs"
    checkout.mkdir()
    (checkout / "train.yaml").touch()
    assert config_dir() == checkout
    packaged = tmp_path / "pkg" / "configs"
    packaged.mkdir(parents=True)
    assert config_dir() == checkout, "a folder without train.yaml is not the packaged one"
    (packaged / "train.yaml").touch()
    assert config_dir() == packaged


WEIGHTS = {
    "slimpajama": 0.5415810341,
    "finnish": 0.1304808053,
    "tatoeba_en_fi": 0.004023063515,
    "tatoeba_fi_en": 0.004016818638,
    "starcoder": 0.3153543717,
    "gutenberg": 0.004543906834,
}


@pytest.mark.parametrize("name", [SMOKE, PORO])
@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_mixture_has_the_published_weights_in_the_published_order(name: str, part: str) -> None:
    sources = getattr(changed(name).data, part)
    assert [(source.name, source.weight) for source in sources] == list(WEIGHTS.items())
    assert f"{sum(source.weight for source in sources):.12f}" == "1.000000000087"
    assert len({source.path for source in sources}) == 6


def test_poro_34b_is_the_published_run() -> None:
    config = changed(PORO)
    published: dict[str, Any] = {
        "model": (54, 7168, 56, 128_000, 1e-5),
        "inferred": (0.0048, 0.1, 0.1, AlibiForm.HISTORIC_BF16, 42),
        "parallel": (2, 4, 128, StageSplit.LAYERS),
        "engine": (EngineKind.DEEPSPEED, Precision.BF16, PipelineSchedule.ONE_F_ONE_B, 1, Recompute.FULL),
        "optimizer": (0.9, 0.95, 1e-8, 0.1, 1.0),
        "schedule": (10**12, 2048, LearningRateKind.COSINE, 1.5e-4, 2e-5, 10**10, 10**12),
        "data": (2048, 42),
        "checkpoint": (144, 100 * 10**9, 5 * 10**9),
    }
    model, section = config.model, config.schedule
    assert published == {
        "model": (model.num_layers, model.hidden_size, model.num_heads, model.vocab_size, model.layer_norm_epsilon),
        "inferred": (model.init_std, model.hidden_dropout, model.attention_dropout, model.alibi, config.run.seed),
        "parallel": (
            config.parallel.tensor,
            config.parallel.pipeline,
            config.parallel.data,
            config.parallel.stage_split,
        ),
        "engine": (
            config.engine.kind,
            config.engine.precision,
            config.engine.pipeline_schedule,
            config.engine.microbatch_samples,
            config.engine.recompute,
        ),
        "optimizer": (
            config.optimizer.beta1,
            config.optimizer.beta2,
            config.optimizer.epsilon,
            config.optimizer.weight_decay,
            config.optimizer.clip_norm,
        ),
        "schedule": (
            section.total_tokens,
            section.global_batch_samples,
            section.kind,
            section.learning_rate,
            section.min_learning_rate,
            section.warmup_tokens,
            section.decay_tokens,
        ),
        "data": (config.data.sequence_length, config.data.shuffle_seed),
        "checkpoint": (config.checkpoint.every_steps, config.export.every_tokens, config.export.max_shard_bytes),
    }


def test_poro_34b_names_the_published_files() -> None:
    assert [source.path for source in changed(PORO).data.train] == [
        "data/poro_34b/train/merged_slimpajama",
        "data/poro_34b/train/merged_finnish",
        "data/poro_34b/train/tatoeba-train.en-fi.jsonl_text_document",
        "data/poro_34b/train/tatoeba-train.fi-en.jsonl_text_document",
        "data/poro_34b/train/starcoder-merged",
        "data/poro_34b/train/train-books_text_document",
    ]


@pytest.mark.parametrize("part", ["hidden_dropout: 0.1", "attention_dropout: 0.1", "init_std: 0.0048"])
def test_what_no_source_publishes_is_marked(part: str) -> None:
    (line,) = [
        line for line in (config_dir() / "model" / "poro_34b.yaml").read_text().splitlines() if line.startswith(part)
    ]
    assert "# inferred" in line


def test_smoke_writes_and_reads_below_its_own_folder_only() -> None:
    config = changed(SMOKE)
    paths = [config.run.root, config.tokenizer.path, config.data.index_cache]
    paths += [source.path for source in (*config.data.train, *config.data.validation)]
    assert all(path.startswith("work/smoke/") for path in paths)
    assert [source.path for source in config.data.train] == [f"work/smoke/data/{name}.train" for name in WEIGHTS]


@pytest.mark.parametrize("pipeline", ["1f1b", "dualpipev"])
@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 2, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2), (1, 4, 2)])
def test_smoke_fits_every_layout_of_the_proofs(layout: tuple[int, int, int], pipeline: str) -> None:
    tensor, stages, data = layout
    if pipeline == "dualpipev" and stages != 2:  # 4 layers, embedding and head fill 2 x 2 stages, and need two
        stages, data = 2, 1
    config = load_config(
        [
            SMOKE,
            f"parallel.tensor={tensor}",
            f"parallel.pipeline={stages}",
            f"parallel.data={data}",
            f"engine.pipeline_schedule={pipeline}",
            "engine.microbatch_samples=1",
        ]
    )
    validate(config, world_size=tensor * stages * data)
