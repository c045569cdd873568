"""Runs that were published come out near their published speed, from the smallest of each kind."""

import dataclasses

import pytest

from benchmarks.published_runs import (
    CALIBRATION_33B,
    CALIBRATION_175B,
    PORO_34B,
    SCALED_175B,
    Published,
    fitted,
    lumi_g,
    predicted_tflops,
)


def test_the_machine_has_the_efficiency_of_the_run_on_8_nodes() -> None:
    assert fitted(CALIBRATION_33B, lumi_g()) == lumi_g()


def test_poro_34b_on_128_nodes_is_predicted_from_8_nodes_within_ten_per_cent() -> None:
    """Nothing of the run is put in; another run's messages gave the bandwidth between nodes."""
    assert predicted_tflops(PORO_34B, lumi_g()) == pytest.approx(PORO_34B.tflops, rel=0.1)


@pytest.mark.parametrize(("run", "within"), list(zip(SCALED_175B, (0.03, 0.03, 0.1), strict=True)))
def test_175b_is_predicted_from_16_nodes(run: Published, within: float) -> None:
    """On 256 nodes the log shows processes that wait seconds for a slow one."""
    machine = fitted(CALIBRATION_175B, lumi_g())
    assert predicted_tflops(run, machine) == pytest.approx(run.tflops, rel=within)


def test_a_bandwidth_that_no_log_shows_is_further_off() -> None:
    """The prediction depends on the bandwidth that was read off the logs, not on the fitted number alone."""
    nominal = dataclasses.replace(lumi_g(), network_bandwidth=12.5e9)
    more = predicted_tflops(PORO_34B, fitted(CALIBRATION_33B, nominal)) - predicted_tflops(PORO_34B, lumi_g())
    assert more > 1.0
