"""What an engine's step is made of: no work of DeepSpeed's is left out, and nothing is measured outside a step."""

import pytest
import torch

from megatron_poro.config.run import EngineKind
from megatron_poro.engine import step_parts
from megatron_poro.engine.deepspeed_engine import OneForwardOneBackward
from megatron_poro.parallel.step_clock import Part
from tests.support.tiny import CPU, make_engine, run_steps, tiny_config


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipev"])
def test_every_instruction_of_deepspeed_counts_to_a_part(schedule: str) -> None:
    engine: type = OneForwardOneBackward
    if schedule == "dualpipev":
        from megatron_poro.engine.dualpipev import DualPipeV

        engine = DualPipeV
    assert {kind.__name__ for kind in engine._INSTRUCTION_MAP} <= step_parts.PARTS.keys()


def test_local_step_computes_updates_and_loads_and_waits_for_nobody() -> None:
    config = tiny_config(kind=EngineKind.LOCAL)
    engine = make_engine(config)
    with engine.groups.clock.step(CPU, watched=frozenset(Part)):
        run_steps(engine, config, range(1))
    parts = engine.groups.clock.last.seconds()
    idle = {Part.TENSOR, Part.PIPELINE, Part.DATA, Part.AGREEMENT}
    assert {part for part, seconds in parts.items() if not seconds} == idle


def test_what_runs_outside_a_step_is_not_measured() -> None:
    config = tiny_config(kind=EngineKind.LOCAL)
    engine = make_engine(config)
    run_steps(engine, config, range(1))
    assert not any(engine.groups.clock.last.seconds().values())


def test_measured_step_has_the_bits_of_one_that_is_not() -> None:
    config = tiny_config(kind=EngineKind.LOCAL)
    measured, plain = make_engine(config), make_engine(config)
    with measured.groups.clock.step(CPU, watched=frozenset(Part)):
        left = run_steps(measured, config, range(2))
    assert left == run_steps(plain, config, range(2))
    pairs = zip(measured.fragments(), plain.fragments(), strict=True)
    assert all(torch.equal(one.flat, other.flat) for one, other in pairs)
