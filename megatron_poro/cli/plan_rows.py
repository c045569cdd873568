"""What ``poro plan`` prints of one layout: tables for a terminal, and the same numbers for a program."""

import dataclasses
from collections.abc import Iterator
from datetime import date, timedelta

from megatron_poro.cli.columns import columns
from megatron_poro.cluster.estimate import Estimate
from megatron_poro.config.cluster import ClusterConfig
from megatron_poro.config.derived import batch_plan
from megatron_poro.config.hardware import HardwareConfig, PlanConfig
from megatron_poro.config.run import AttentionBackend, Recompute, TrainConfig
from megatron_poro.planning.forecast import Forecast, forecast
from megatron_poro.planning.intervals import checkpoint_bytes, export_bytes, save_interval
from megatron_poro.planning.layers import held_parameters, rank_layers, total_parameters
from megatron_poro.planning.recomputing import least_recomputation, recompute_words, with_waiting
from megatron_poro.schedule.plan import plan_run
from megatron_poro.units import format_bytes, format_seconds


def plan_rows(
    config: TrainConfig, request: PlanConfig, found: Forecast, *, backend: AttentionBackend, start: date
) -> Iterator[str]:
    """The lines of a plan.

    Args:
        config: a valid config.
        request: the machine, and how long saves and restarts take.
        found: what to expect.
        backend: the attention kernel that will run.
        start: first day of the run.
    """
    yield from _run_rows(config, request, found)
    yield ""
    yield from _rank_rows(config, request, found, backend)
    yield ""
    yield from _time_rows(found)
    yield ""
    yield from _cost_rows(config, request, found, start=start)


def _run_rows(config: TrainConfig, request: PlanConfig, found: Forecast) -> Iterator[str]:
    batch, parallel = batch_plan(config, found.world_size), config.parallel
    cut = ", the sequence cut over tensor" if parallel.sequence and parallel.tensor > 1 else ""
    yield f"machine     {request.hardware.name}, {found.world_size:,} devices"
    yield f"layout      tensor {parallel.tensor} x pipeline {parallel.pipeline} x data {batch.data_size}{cut}"
    yield f"model       {total_parameters(config.model):,} parameters"
    yield (
        f"step        {batch.tokens_per_step:,} tokens, {batch.microbatches} microbatches of "
        f"{batch.microbatch_samples} a replica, {found.steps:,} steps"
    )
    yield f"checkpoint  {format_bytes(checkpoint_bytes(config))}, export {format_bytes(export_bytes(config))}"


def _rank_rows(config: TrainConfig, request: PlanConfig, found: Forecast, backend: AttentionBackend) -> Iterator[str]:
    verdict = "" if found.fits else ": TOO LITTLE"
    room = format_bytes(request.hardware.room_for_tensors)
    yield f"one process of each stage; {room} of memory are for tensors{verdict}"
    names = list(found.memory[0]._fields)
    if config.engine.deferred_weight_gradients is None:
        names.remove("deferred")
    memory = [["stage", *names, "in all"]]
    for rank, parts in enumerate(found.memory):
        held = [*(getattr(parts, name) for name in names), parts.total]
        memory.append([str(rank), *(format_bytes(int(size)) for size in held)])
    yield from columns(memory)
    yield from _spent_rows(config, request.hardware, found, backend)
    yield ""
    yield "and what it sends in a step"
    sent = [["stage", "blocks", "parameters", *found.traffic[0]._fields, "in all"]]
    for rank, (layers, traffic) in enumerate(zip(rank_layers(config), found.traffic, strict=True)):
        parameters = held_parameters(layers, config.parallel.tensor)
        blocks = sum(layer.is_block for layer in layers)
        sizes = (format_bytes(int(size)) for size in (*traffic, traffic.total))
        sent.append([str(rank), str(blocks), f"{parameters:,}", *sizes])
    yield from columns(sent)


def _spent_rows(
    config: TrainConfig, hardware: HardwareConfig, found: Forecast, backend: AttentionBackend
) -> Iterator[str]:
    """What the memory that is left buys: less recomputation, and weight gradients that wait too."""
    least = least_recomputation(config, hardware, world_size=found.world_size, backend=backend)
    if least is None:
        yield "no recomputation makes this layout fit; cut it finer, or take smaller microbatches"
        return
    if recompute_words(least) != recompute_words(config):
        how = "fits without recomputation" if least.engine.recompute is Recompute.NONE else "just fits"
        yield from _other_rows(how, recompute_words(least), least, hardware, found, backend)
    waiting = with_waiting(config, config.parallel.pipeline - 1)
    most = waiting.engine.deferred_weight_gradients
    if most == config.engine.deferred_weight_gradients:
        return
    least = least_recomputation(waiting, hardware, world_size=found.world_size, backend=backend)
    if least is not None:
        words = f"engine.deferred_weight_gradients={most} {recompute_words(least)}"
        yield from _other_rows("fits with weight gradients that wait", words, least, hardware, found, backend)


def _other_rows(
    how: str, words: str, other: TrainConfig, hardware: HardwareConfig, found: Forecast, backend: AttentionBackend
) -> Iterator[str]:
    planned = forecast(other, hardware, world_size=found.world_size, backend=backend)
    most = format_bytes(int(max(part.total for part in planned.memory)))
    gain = f", {found.time.total / planned.time.total:.2f} times as fast" if found.fits else ""
    yield f"{how}, with {most}: {planned.time.total:.2f} s a step{gain}"
    yield f"  {words}"


def _time_rows(found: Forecast) -> Iterator[str]:
    yield f"a step takes {found.time.total:.2f} s"
    meanings = {
        "compute": "passes through layers, recomputation included",
        "tensor": "sums over the tensor group",
        "bubble": "waiting for other stages",
        "data": "what is left of the sums over replicas when passes have ended",
        "optimizer": "update, and gathering the new weights",
    }
    for name, meaning in meanings.items():
        seconds: float = getattr(found.time, name)
        yield f"  {name:<10} {seconds:7.2f} s {seconds / found.time.total:6.1%}  {meaning}"
    speed = found.speed
    yield (
        f"{speed.tokens_per_second:,.0f} tokens/s; {speed.model_tflops:.1f} TFLOP/s a device for the model (MFU "
        f"{speed.mfu:.1%}), {speed.hardware_tflops:.1f} with recomputation"
    )


def _cost_rows(config: TrainConfig, request: PlanConfig, found: Forecast, *, start: date) -> Iterator[str]:
    hardware = request.hardware
    energy = found.device_hours * hardware.device_watts / 1e6
    yield f"the run takes {found.days:.1f} days, {found.device_hours:,.0f} device hours, {energy:,.0f} MWh"
    seconds = {"blocked_seconds": request.blocked_seconds, "restart_seconds": request.restart_seconds}
    best = save_interval(found, hardware, every_steps=None, **seconds)
    interval = format_seconds(best.steps * found.time.total)
    yield (
        f"failures    about {best.failures:.0f}; saving every {best.steps} steps ({interval}) loses least, "
        f"{best.lost_share:.2%} of the time"
    )
    if config.checkpoint.every_steps:
        own = save_interval(found, hardware, every_steps=config.checkpoint.every_steps, **seconds)
        yield f"            checkpoint.every_steps={own.steps} loses {own.lost_share:.2%}"
    for label, step, day in milestones(config, found, start=start):
        yield f"milestone   {label:>8}  step {step:>9,}  {day.isoformat()}"


def job_rows(cluster: ClusterConfig, jobs: Estimate) -> Iterator[str]:
    """The lines on Slurm jobs."""
    per_hour = cluster.gpu_hours_per_node_hour
    billed = "" if per_hour is None else f", {jobs.node_hours * per_hour:,.0f} GPU-hours billed"
    yield (
        f"jobs        {jobs.jobs} of {cluster.train.walltime}, {format_seconds(jobs.job_seconds)} of steps each; "
        f"{jobs.node_hours:,.0f} node-hours{billed}"
    )


def milestones(config: TrainConfig, found: Forecast, *, start: date) -> Iterator[tuple[str, int, date]]:
    """Label, step and day of each milestone of a run that begins on a day."""
    for milestone in plan_run(config, world_size=found.world_size).milestones:
        yield milestone.label, milestone.step, start + timedelta(seconds=milestone.step * found.time.total)


def plan_record(config: TrainConfig, found: Forecast, jobs: Estimate | None, *, start: date) -> dict[str, object]:
    """The numbers of a plan for a program; arguments as those of :func:`plan_rows`."""
    of_cluster = {} if jobs is None else {"jobs": jobs.jobs, "node_hours": jobs.node_hours}
    return {
        **of_cluster,
        "devices": found.world_size,
        "steps": found.steps,
        "fits": found.fits,
        "days": found.days,
        "device_hours": found.device_hours,
        "step_seconds": {**dataclasses.asdict(found.time), "total": found.time.total},
        "speed": dataclasses.asdict(found.speed),
        "memory_bytes": [{**parts._asdict(), "total": parts.total} for parts in found.memory],
        "sent_bytes": [traffic._asdict() for traffic in found.traffic],
        "milestones": [
            {"label": label, "step": step, "day": day.isoformat()}
            for label, step, day in milestones(config, found, start=start)
        ],
    }
