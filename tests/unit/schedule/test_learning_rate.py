"""The rate is Megatron's, to the digits of the table worked out from the published numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.config.load import load_config
from megatron_poro.config.run import LearningRateKind, ScheduleConfig
from megatron_poro.schedule.learning_rate import LearningRate

PORO = LearningRate.of(load_config(["experiment=poro_34b"]).schedule, sequence_length=2048)
BATCH = 2048

# Completed steps of Poro 34B -> the rate the next step runs at, with the digits of the table.
TABLE = {
    1: "6.2915e-08",
    10: "6.2915e-07",
    100: "6.2915e-06",
    1000: "6.2915e-05",
    2000: "1.25829e-04",
    2384: "1.49988e-04",
    2385: "1.50000e-04",
    5000: "1.49961e-04",
    10_000: "1.49666e-04",
    23_842: "1.47367e-04",
    50_000: "1.37377e-04",
    95_328: "1.06292e-04",
    119_210: "8.60307e-05",
    150_000: "6.00502e-05",
    200_000: "2.83144e-05",
    230_000: "2.04076e-05",
    238_418: "2.00000e-05",
}


@pytest.mark.parametrize(("step", "rate"), TABLE.items())
def test_the_table_of_poro_34b(step: int, rate: str) -> None:
    digits = len(rate.split("e")[0]) - 2
    assert f"{PORO.at(step * BATCH):.{digits}e}" == rate


def test_the_first_step_runs_at_zero() -> None:
    assert PORO.at(0) == 0.0


def test_warmup_and_decay_are_whole_samples_rounded_down() -> None:
    assert PORO.warmup_samples == 4_882_812  # 10B / 2048 = 4,882,812.5
    assert PORO.decay_samples == 488_281_250


def test_a_real_log_line_of_the_same_schedule() -> None:
    """A public log of the same code: peak 6e-5, batch 1024, warm-up 1,465,000 samples print 4.194E-08 after step 1."""
    rate = LearningRate(LearningRateKind.COSINE, 6e-5, 0.0, warmup_samples=1_465_000, decay_samples=146_500_000)
    assert f"{rate.at(1024):.3E}" == "4.194E-08"


def test_the_peak_is_reached_exactly_and_the_minimum_is_kept() -> None:
    assert PORO.at(PORO.warmup_samples) == 1.5e-4
    assert PORO.at(PORO.decay_samples) == pytest.approx(2e-5, abs=1e-20)
    assert PORO.at(PORO.decay_samples + 1) == 2e-5
    assert PORO.at(10 * PORO.decay_samples) == 2e-5


def test_half_way_through_the_decay_it_is_half_way_between() -> None:
    middle = (PORO.warmup_samples + PORO.decay_samples) // 2
    assert PORO.at(middle) == pytest.approx((1.5e-4 + 2e-5) / 2, rel=1e-7)


@given(st.integers(0, 500_000_000), st.integers(0, 10_000_000))
def test_it_never_rises_after_the_warmup_nor_falls_before(samples: int, further: int) -> None:
    before, after = PORO.at(samples), PORO.at(samples + further)
    if samples >= PORO.warmup_samples:
        assert before >= after >= 2e-5
    elif samples + further <= PORO.warmup_samples:
        assert before <= after <= 1.5e-4


def schedule(**values: object) -> ScheduleConfig:
    config = ScheduleConfig(
        total_tokens=1000, global_batch_samples=1, learning_rate=1.0, min_learning_rate=0.1, warmup_tokens=100
    )
    for name, value in values.items():
        setattr(config, name, value)
    return config


def test_without_a_decay_it_ends_with_the_run() -> None:
    assert LearningRate.of(schedule(), sequence_length=10).decay_samples == 100
    assert LearningRate.of(schedule(decay_tokens=5000), sequence_length=10).decay_samples == 500


def test_a_decay_longer_than_the_run_ends_above_the_minimum() -> None:
    rate = LearningRate.of(schedule(decay_tokens=2000, warmup_tokens=0), sequence_length=10)
    assert rate.at(100) == pytest.approx(0.1 + 0.9 / 2)


def test_without_a_warmup_the_first_step_runs_at_the_peak() -> None:
    assert LearningRate.of(schedule(warmup_tokens=0), sequence_length=10).at(0) == 1.0


def test_a_constant_rate_stays_after_the_warmup() -> None:
    rate = LearningRate.of(schedule(kind=LearningRateKind.CONSTANT), sequence_length=10)
    assert [rate.at(samples) for samples in (0, 5, 10, 11, 10_000)] == [0.0, 0.5, 1.0, 1.0, 1.0]


def test_a_warmup_that_fills_the_decay_drops_to_the_minimum() -> None:
    rate = LearningRate.of(schedule(warmup_tokens=1000), sequence_length=10)
    assert [rate.at(samples) for samples in (50, 100, 101)] == [0.5, 1.0, 0.1]


def test_a_schedule_of_less_than_one_sample_is_still_a_number() -> None:
    rate = LearningRate(LearningRateKind.COSINE, 1.0, 0.1, warmup_samples=0, decay_samples=0)
    assert math.isfinite(rate.at(0))
