"""What a plan and its machine may not be, and what is said of it."""

import dataclasses

import pytest

from megatron_poro.config.hardware import PlanConfig
from megatron_poro.config.load import load_plan
from megatron_poro.config.plan_rules import validate_plan
from megatron_poro.errors import ConfigError


def plan(key: str, value: object) -> PlanConfig:
    """A good plan with one value changed."""
    good = load_plan(["hardware=lumi_g", "nodes=2"])
    section, _, name = key.rpartition(".")
    if not section:
        return dataclasses.replace(good, **{name: value})
    return dataclasses.replace(good, hardware=dataclasses.replace(good.hardware, **{name: value}))


def test_the_packaged_machine_is_good() -> None:
    validate_plan(load_plan(["hardware=lumi_g"]))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("nodes", 0, "nodes=0 must be at least 1."),
        ("nodes", -1, "nodes=-1 must be at least 1."),
        ("hardware.devices_per_node", 0, "hardware.devices_per_node=0 must be at least 1."),
        ("hardware.devices_per_module", 0, "hardware.devices_per_module=0 must be at least 1."),
        ("hardware.peak_tflops", 0.0, "hardware.peak_tflops=0 must be a number above 0."),
        ("hardware.fp32_peak_tflops", -1.0, "hardware.fp32_peak_tflops=-1 must be a number above 0."),
        ("hardware.memory_bandwidth", float("nan"), "hardware.memory_bandwidth=nan must be a number above 0."),
        ("hardware.module_bandwidth", 0.0, "hardware.module_bandwidth=0 must be a number above 0."),
        ("hardware.node_bandwidth", 0.0, "hardware.node_bandwidth=0 must be a number above 0."),
        ("hardware.network_bandwidth", float("inf"), "hardware.network_bandwidth=inf must be a number above 0."),
        (
            "hardware.efficiency",
            0.0,
            "hardware.efficiency=0 must be a share of the peak, above 0 and at most 1; 0.4 is 40 %.",
        ),
        (
            "hardware.efficiency",
            38.5,
            "hardware.efficiency=38.5 must be a share of the peak, above 0 and at most 1; 0.4 is 40 %.",
        ),
        ("hardware.latency_seconds", -1e-6, "hardware.latency_seconds=-1e-06 must be a number, 0 or above."),
        ("hardware.device_watts", -1.0, "hardware.device_watts=-1 must be a number, 0 or above."),
        ("hardware.node_failures_per_year", -2.0, "hardware.node_failures_per_year=-2 must be a number, 0 or above."),
        ("blocked_seconds", -1.0, "blocked_seconds=-1 must be a number, 0 or above."),
        ("restart_seconds", float("inf"), "restart_seconds=inf must be a number, 0 or above."),
        (
            "hardware.reserved_bytes",
            64_000_000_000,
            "hardware.reserved_bytes=64000000000 leaves nothing of hardware.device_memory_bytes=64000000000; reserve "
            "less.",
        ),
        (
            "hardware.devices_per_module",
            3,
            "hardware.devices_per_module=3 does not divide hardware.devices_per_node=8; a node is made of whole "
            "modules.",
        ),
    ],
)
def test_a_value_out_of_range_is_refused(key: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        validate_plan(plan(key, value))
    assert str(refusal.value) == sentence


@pytest.mark.parametrize("key", ["hardware.node_failures_per_year", "hardware.latency_seconds", "blocked_seconds"])
def test_nothing_of_it_is_possible(key: str) -> None:
    validate_plan(plan(key, 0.0))


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as refusal:
        validate_plan(dataclasses.replace(plan("nodes", 0), blocked_seconds=-1.0))
    assert len(str(refusal.value).splitlines()) == 2
