"""Spikes and values that are not finite are refused; ordinary curves are not; what was refused leaves no trace."""

import json
import math
import random
from collections.abc import Iterator

import pytest

from megatron_poro.config.guards import GuardsConfig
from megatron_poro.train.step_guard import StepGuard

WINDOW = 16


def _guard(losses: list[float], **changes: float) -> StepGuard:
    """A guard whose window is full of these losses and of gradient norms around 1."""
    guard = StepGuard(GuardsConfig(**{"spike_window_steps": WINDOW, **changes}))  # type: ignore[arg-type]
    for number, loss in enumerate(losses):
        guard.accepted(loss, 1.1 if number % 2 else 0.9)
    return guard


NOISY = [2.0, 2.1] * (WINDOW // 2)
"""Mean 2.05, standard deviation 0.05."""


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_whatever_the_window(bad: float) -> None:
    for guard in (_guard([]), _guard(NOISY), _guard(NOISY, spike_sigma=0.0)):
        assert not guard.accepts(bad, 1.0)
        assert not guard.accepts(2.0, bad)
        assert guard.accepts(2.05, 1.0)


def test_loss_is_a_spike_from_six_standard_deviations_on() -> None:
    guard = _guard(NOISY)
    assert guard.accepts(2.05 + 0.29, 1.0)
    assert not guard.accepts(2.05 + 0.31, 1.0)
    assert "loss 2.36 is above 2.35" in str(guard.objection(2.36, 1.0))


def test_gradient_norm_is_compared_by_its_logarithm() -> None:
    guard = _guard(NOISY)  # standard deviation of the logarithm: 0.1
    limit = math.exp((math.log(0.9) + math.log(1.1)) / 2 + 6 * (math.log(1.1) - math.log(0.9)) / 2)
    assert guard.accepts(2.0, limit * 0.99)
    assert not guard.accepts(2.0, limit * 1.01)
    assert "gradient norm" in str(guard.objection(2.0, limit * 1.01))


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    assert _guard(NOISY[:-1]).accepts(1e6, 1e6)
    assert not _guard(NOISY).accepts(1e6, 1.0)


def test_spikes_pass_a_guard_that_is_switched_off() -> None:
    assert _guard(NOISY, spike_sigma=0.0).accepts(1e6, 1e6)


def test_refused_steps_do_not_move_the_window() -> None:
    guard, untouched = _guard(NOISY), _guard(NOISY)
    for step in range(100):
        assert not guard.accepts(3.0, 1.0)
        guard.passed_over(step)
    assert {**guard.state(), "row": []} == untouched.state()
    assert not guard.accepts(3.0, 1.0), "a hundred spikes do not make the next one ordinary"


def test_only_a_row_of_refused_steps_is_stuck() -> None:
    guard = _guard(NOISY, max_skips_in_row=3)
    for step in (1, 2):
        guard.passed_over(step)
    assert not guard.is_stuck
    guard.accepted(2.0, 1.0)
    for step in (4, 5):
        guard.passed_over(step)
    assert not guard.is_stuck
    guard.passed_over(6)
    assert guard.is_stuck
    assert guard.row == [4, 5, 6]


def test_guard_that_never_goes_back_is_never_stuck() -> None:
    guard = _guard(NOISY, max_skips_in_row=0)
    for step in range(1000):
        guard.passed_over(step)
    assert not guard.is_stuck


def test_guard_that_was_written_down_and_read_back_judges_alike() -> None:
    random_numbers = random.Random(5)
    guard = _guard([random_numbers.gauss(2.0, 0.05) for _ in range(3 * WINDOW)])
    guard.passed_over(49)
    restored = StepGuard(GuardsConfig(spike_window_steps=WINDOW))
    restored.restore(json.loads(json.dumps(guard.state())))
    assert restored.state() == guard.state()
    for loss in (2.2, 2.25, 2.3, 2.35, 2.4):
        assert restored.accepts(loss, 1.0) == guard.accepts(loss, 1.0)
    restored.restore({})
    assert restored.state() == {"losses": [], "grad_norms": [], "row": []}


def clean_curve(seed: int, steps: int) -> Iterator[tuple[float, float]]:
    """Loss and gradient norm of a healthy run: large norms at first, a bump at the end of the warm-up, noise."""
    random_numbers, drift = random.Random(seed), 0.0
    for step in range(1, steps + 1):
        drift = 0.95 * drift + random_numbers.gauss(0, 0.005)
        loss = 1.7 + 9.5 * (1 + step / 300) ** -0.6 + drift + random_numbers.gauss(0, 0.012)
        bump = 0.6 * math.exp(-(((step - 2385) / 900) ** 2))
        norm = (0.25 + 8 * math.exp(-step / 400) + bump) * math.exp(random_numbers.gauss(0, 0.25))
        yield loss, norm


def refused_of_clean_curve(seed: int, steps: int) -> int:
    guard, refused = StepGuard(GuardsConfig()), 0
    for loss, norm in clean_curve(seed, steps):
        if guard.accepts(loss, norm):
            guard.accepted(loss, norm)
        else:
            refused += 1
    return refused


def test_no_step_of_a_clean_curve_is_refused() -> None:
    """A hundred thousand of them take seconds and run in the fault campaign."""
    assert refused_of_clean_curve(1, 6_000) == 0
