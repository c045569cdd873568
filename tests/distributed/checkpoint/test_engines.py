"""The real engines through a checkpoint: every value of a trained grid arrives bit for bit at another."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.resuming import resume
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.identity import identity
from megatron_poro.config.load import to_yaml
from megatron_poro.config.run import EngineKind, PipelineSchedule, Precision, TrainConfig
from megatron_poro.parallel.topology import Topology
from tests.support.ranks import run_ranks
from tests.support.tiny import full_values, make_engine, run_steps, tiny_config
from tests.unit.checkpoint.fake_engine import run_state

LOCAL = Topology()
STEPS = 2

Values = dict[str, torch.Tensor]


def config_for(
    layout: Topology, precision: Precision, schedule: PipelineSchedule = PipelineSchedule.ONE_F_ONE_B
) -> TrainConfig:
    kind = EngineKind.LOCAL if layout == LOCAL else EngineKind.DEEPSPEED
    return tiny_config(kind=kind, precision=precision, pipeline_schedule=schedule)


def train_and_save(folder: Path, config: TrainConfig, layout: Topology) -> Values:
    engine = make_engine(config, layout)
    run_steps(engine, config, range(STEPS))
    state = replace(run_state(STEPS, topology=layout), identity=identity(config), config=to_yaml(config))
    save(CheckpointStore(folder), engine, state)
    return full_values(engine)


def load_and_step(folder: Path, config: TrainConfig, layout: Topology) -> tuple[Values, float]:
    """The values after loading, and the loss of the step that follows."""
    engine = make_engine(config, layout)
    state = resume(CheckpointStore(folder), engine, config=config, tokenizer_fingerprint="ab" * 32)
    assert state is not None
    assert state.step == STEPS
    values = {key: value.clone() for key, value in full_values(engine).items()}
    (loss,), _, _ = run_steps(engine, config, range(STEPS, STEPS + 1))
    return values, loss


PAIRS = [
    (Topology(tensor=2, pipeline=2), LOCAL),
    (LOCAL, Topology(pipeline=2, data=2)),
    (Topology(tensor=2, data=2), Topology(pipeline=4)),
]


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda layout: str(layout).replace(" ", ","))
def test_a_trained_grid_goes_on_at_another_layout(
    tmp_path: Path, source: Topology, target: Topology, precision: Precision
) -> None:
    before = run_ranks(train_and_save, tmp_path, config_for(source, precision), source, world=source.world_size)[0]
    arrived, loss = run_ranks(load_and_step, tmp_path, config_for(target, precision), target, world=target.world_size)[
        0
    ]
    assert_same(arrived, before)
    _, control = run_ranks(load_and_step, tmp_path, config_for(source, precision), source, world=source.world_size)[0]
    assert loss == pytest.approx(control, rel=1e-4 if precision is Precision.FP32 else 2e-2)


def test_a_dualpipev_grid_goes_on_as_1f1b(tmp_path: Path) -> None:
    layout = Topology(pipeline=2, data=2)
    dual = config_for(layout, Precision.BF16, PipelineSchedule.DUALPIPEV)
    before = run_ranks(train_and_save, tmp_path, dual, layout, world=4)[0]
    arrived, _ = run_ranks(load_and_step, tmp_path, config_for(layout, Precision.BF16), layout, world=4)[0]
    assert_same(arrived, before)


def test_the_reader_gives_what_the_engines_hold(tmp_path: Path) -> None:
    layout = Topology(tensor=2, pipeline=2)
    held = run_ranks(train_and_save, tmp_path, config_for(layout, Precision.BF16), layout, world=4)[0]
    reader = CheckpointReader(CheckpointStore(tmp_path).path(STEPS))
    assert_same({f"{kind.value}.{name}": reader.tensor(name, kind) for kind, name in reader.tensors}, held)


def assert_same(found: Values, expected: Values) -> None:
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert any(value.any() for key, value in expected.items() if key.startswith("exp_avg_sq"))
