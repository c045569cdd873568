"""What a single value of a plan and of its machine must be; rules as in :mod:`~megatron_poro.config.value_rules`."""

import math
from collections.abc import Callable, Iterator

from megatron_poro.config.hardware import PlanConfig
from megatron_poro.errors import ConfigError

PlanRule = Callable[[PlanConfig], Iterator[str]]


def validate_plan(plan: PlanConfig) -> None:
    """Refuses a plan or a machine whose values are out of range.

    Raises:
        ConfigError: one line per problem.
    """
    problems = [problem for rule in PLAN_RULES for problem in rule(plan)]
    if problems:
        raise ConfigError("\n".join(problems))


def counts_are_positive(plan: PlanConfig) -> Iterator[str]:
    """Whatever is counted and needed at least once."""
    counts = {
        "nodes": plan.nodes,
        "hardware.devices_per_node": plan.hardware.devices_per_node,
        "hardware.devices_per_module": plan.hardware.devices_per_module,
        "hardware.device_memory_bytes": plan.hardware.device_memory_bytes,
    }
    yield from (
        f"{key}={count} must be at least 1." for key, count in counts.items() if count is not None and count < 1
    )


def speeds_are_positive(plan: PlanConfig) -> Iterator[str]:
    """Numbers that are divided by."""
    hardware = plan.hardware
    speeds = {
        "hardware.peak_tflops": hardware.peak_tflops,
        "hardware.fp32_peak_tflops": hardware.fp32_peak_tflops,
        "hardware.memory_bandwidth": hardware.memory_bandwidth,
        "hardware.module_bandwidth": hardware.module_bandwidth,
        "hardware.node_bandwidth": hardware.node_bandwidth,
        "hardware.network_bandwidth": hardware.network_bandwidth,
    }
    yield from (
        f"{key}={speed:g} must be a number above 0." for key, speed in speeds.items() if not 0 < speed < math.inf
    )


def efficiency_is_a_share(plan: PlanConfig) -> Iterator[str]:
    """Nothing computes faster than the peak, and a device that reaches none of it never ends a step."""
    if not 0 < plan.hardware.efficiency <= 1:
        yield (
            f"hardware.efficiency={plan.hardware.efficiency:g} must be a share of the peak, above 0 and at most 1; 0.4 "
            "is 40 %."
        )


def amounts_are_not_negative(plan: PlanConfig) -> Iterator[str]:
    """0 is none of it: no failures, no latency, saves that nobody waits for."""
    amounts = {
        "hardware.reserved_bytes": plan.hardware.reserved_bytes,
        "hardware.latency_seconds": plan.hardware.latency_seconds,
        "hardware.device_watts": plan.hardware.device_watts,
        "hardware.node_failures_per_year": plan.hardware.node_failures_per_year,
        "blocked_seconds": plan.blocked_seconds,
        "restart_seconds": plan.restart_seconds,
    }
    yield from (
        f"{key}={amount:g} must be a number, 0 or above."
        for key, amount in amounts.items()
        if not 0 <= amount < math.inf
    )


def tensors_have_room(plan: PlanConfig) -> Iterator[str]:
    """What is reserved is a part of a device's memory."""
    hardware = plan.hardware
    if 0 < hardware.device_memory_bytes <= hardware.reserved_bytes:
        yield (
            f"hardware.reserved_bytes={hardware.reserved_bytes} leaves nothing of "
            f"hardware.device_memory_bytes={hardware.device_memory_bytes}; reserve less."
        )


def modules_fill_a_node(plan: PlanConfig) -> Iterator[str]:
    """A node is made of whole modules."""
    module, node = plan.hardware.devices_per_module, plan.hardware.devices_per_node
    if module > 0 and node % module:
        yield (
            f"hardware.devices_per_module={module} does not divide hardware.devices_per_node={node}; a node is made of "
            "whole modules."
        )


PLAN_RULES: tuple[PlanRule, ...] = (
    counts_are_positive,
    speeds_are_positive,
    efficiency_is_a_share,
    amounts_are_not_negative,
    tensors_have_room,
    modules_fill_a_node,
)
