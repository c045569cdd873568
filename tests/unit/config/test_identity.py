"""The fingerprint changes with what makes a run this run, and with nothing else."""

import subprocess
import sys
from typing import Any

import pytest

from megatron_poro.config.identity import ABSENT, differences, fingerprint, flatten, identity_differences
from megatron_poro.config.model import AlibiForm
from megatron_poro.config.run import EngineKind, Precision, Recompute
from tests.unit.config.configs import PORO, SMOKE, changed

DEFINING: list[dict[str, Any]] = [
    {"model__num_layers": 5},
    {"model__init_std": 0.01},
    {"model__hidden_dropout": 0.1},
    {"model__alibi": AlibiForm.HISTORIC_BF16},
    {"run__seed": 7},
    {"data__sequence_length": 256},
    {"data__shuffle_seed": 7},
    {"data__train__0__name": "web"},
    {"data__train__0__weight": 0.5},
    {"data__train__0__path": "work/smoke/data/slimpajama.fixed"},
    {"schedule__total_tokens": 165_000},
    {"schedule__global_batch_samples": 32},
]
FREE: list[dict[str, Any]] = [
    {"run__name": "other"},
    {"run__root": "elsewhere"},
    {"run__stop_after_steps": 40},
    {"parallel__tensor": 1},
    {"parallel__data": 2},
    {"engine__kind": EngineKind.LOCAL},
    {"engine__precision": Precision.FP32},
    {"engine__recompute": Recompute.NONE},
    {"engine__microbatch_samples": 1},
    {"data__folder": "/scratch"},
    {"data__train__0__path": "/scratch/slimpajama.train"},
    {"data__index_cache": "/scratch/index"},
    {"data__validation": []},
    {"schedule__learning_rate": 1e-3},
    {"schedule__decay_tokens": 10**9},
    {"optimizer__weight_decay": 0.0},
    {"checkpoint__every_steps": 1},
    {"export__every_tokens": 0},
    {"metrics__wandb": True},
    {"profile__steps": "3:5"},
    {"tokenizer__path": "/scratch/tokenizer"},
]


@pytest.mark.parametrize("values", DEFINING, ids=lambda values: next(iter(values)))
def test_what_defines_the_run_changes_the_fingerprint(values: dict[str, Any]) -> None:
    left, right = changed(SMOKE), changed(SMOKE, **values)
    assert fingerprint(left) != fingerprint(right)
    assert len(identity_differences(left, right)) == 1


@pytest.mark.parametrize("values", FREE, ids=lambda values: next(iter(values)))
def test_what_may_change_does_not(values: dict[str, Any]) -> None:
    left, right = changed(SMOKE), changed(SMOKE, **values)
    assert left != right
    assert fingerprint(left) == fingerprint(right)
    assert identity_differences(left, right) == []


def test_the_order_of_the_sources_is_part_of_the_run() -> None:
    turned = changed(SMOKE)
    turned.data.train.reverse()
    assert fingerprint(turned) != fingerprint(changed(SMOKE))


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from megatron_poro.config.load import load_config\n"
        "from megatron_poro.config.identity import fingerprint\n"
        "print(fingerprint(load_config(['experiment=poro_34b'])), end='')\n"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other == fingerprint(changed(PORO))
    assert len(other) == 64


def test_differences_name_the_key_and_both_values_in_schema_order() -> None:
    found = differences(changed(SMOKE), changed(SMOKE, metrics__wandb=True, parallel__data=2, model__num_layers=5))
    assert list(map(str, found)) == [
        "model.num_layers: 4 -> 5",
        "parallel.data: null -> 2",
        "metrics.wandb: false -> true",
    ]


def test_a_source_that_only_one_config_has_is_absent_in_the_other() -> None:
    shorter = changed(SMOKE)
    gone = shorter.data.train.pop()
    found = {difference.key: difference for difference in differences(changed(SMOKE), shorter)}
    keys = ("name", "path", "weight", "start", "end", "published_tokens", "remark")
    assert set(found) == {f"data.train[5].{key}" for key in keys}
    assert (found["data.train[5].name"].left, found["data.train[5].name"].right) == (gone.name, ABSENT)


def test_equal_configs_do_not_differ() -> None:
    assert differences(changed(PORO), changed(PORO)) == []


def test_flatten_gives_plain_values() -> None:
    flat = flatten(changed(SMOKE))
    assert flat["engine.precision"] == "bf16"
    assert flat["data.train[1].name"] == "finnish"
    assert {type(value) for value in flat.values()} <= {str, int, float, bool, type(None)}
