"""Operation counts against the published throughput of Poro 34B."""

import pytest

from megatron_poro.config.run import Recompute
from megatron_poro.metrics.throughput import SpeedOfRun, step_flops

_PORO = {"num_layers": 54, "hidden_size": 7168, "vocab_size": 128_000, "sequence_length": 2048}
_TOKENS_PER_SECOND = 174_378


def test_poro_34b_hardware_flops_give_the_published_aggregate_throughput() -> None:
    flops = step_flops(**_PORO, samples=2048, recompute=Recompute.FULL)
    seconds = 2048 * 2048 / _TOKENS_PER_SECOND
    assert flops.hardware / seconds / 1e12 == pytest.approx(49_618.16, abs=0.01)


def test_poro_34b_speed_per_device() -> None:
    run = SpeedOfRun(
        step_flops(**_PORO, samples=2048, recompute=Recompute.FULL),
        tokens_per_step=2048 * 2048,
        devices=1024,
        peak_tflops=191.5,
    )
    speed = run.of(24.0529)
    assert speed.hardware_tflops == pytest.approx(48.46, abs=0.01)
    assert speed.tokens_per_second == pytest.approx(174_378, abs=2)
    assert speed.mfu == pytest.approx(speed.model_tflops / 191.5)
    assert 0.18 < speed.model_tflops / 191.5 < 0.20


def test_speed_of_several_steps_is_that_of_one() -> None:
    run = SpeedOfRun(step_flops(**_PORO, samples=1, recompute=Recompute.NONE), tokens_per_step=2048, devices=1)
    assert run.of(30.0, 10) == run.of(3.0)
    assert run.of(3.0).mfu is None


@pytest.mark.parametrize("recompute", list(Recompute))
def test_recomputation_changes_hardware_but_not_model_flops(recompute: Recompute) -> None:
    plain = step_flops(**_PORO, samples=3, recompute=Recompute.NONE)
    flops = step_flops(**_PORO, samples=3, recompute=recompute)
    assert flops.model == plain.model == plain.hardware
    attention = 4 * 3 * 2048**2 * 7168 * 54
    blocks = 24 * 3 * 2048 * 7168**2 * 54 + attention
    again = {Recompute.NONE: 0, Recompute.SELECTIVE: attention, Recompute.FULL: blocks}[recompute]
    assert flops.hardware - flops.model == pytest.approx(again)
    some = step_flops(**_PORO, samples=3, recompute=recompute, recomputed_layers=27)
    assert some.hardware - some.model == pytest.approx(again / 2)


def test_model_flops_are_six_per_parameter_and_token_plus_attention() -> None:
    flops = step_flops(**_PORO, samples=1, recompute=Recompute.NONE)
    matrices = 12 * 7168**2 * 54 + 128_000 * 7168
    attention = 12 * 2048 * 7168 * 54
    assert flops.model == pytest.approx(2048 * (6 * matrices + attention))
