"""``poro plan``: what a run needs and how fast it will be, from the config alone; no torch, no GPU, no data."""

import argparse
import dataclasses
import importlib
import json
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path

from omegaconf import OmegaConf

from megatron_poro.cli.columns import columns
from megatron_poro.cli.plan_search import search_rows
from megatron_poro.cluster.estimate import Estimate, Speed, estimate
from megatron_poro.config.cluster import ClusterConfig, SubmitConfig
from megatron_poro.config.command_line import Selection, add_selection_arguments, parse_selection, selection
from megatron_poro.config.derived import batch_plan, replica_processes
from megatron_poro.config.hardware import HardwareConfig, PlanConfig
from megatron_poro.config.load import compose
from megatron_poro.config.run import AttentionBackend, TrainConfig
from megatron_poro.config.typed import typed
from megatron_poro.config.validate import validate
from megatron_poro.errors import ConfigError
from megatron_poro.planning.forecast import (
    Forecast,
    PassTimes,
    checkpoint_bytes,
    export_bytes,
    forecast,
    save_interval,
    transfer_seconds,
)
from megatron_poro.planning.layers import held_parameters, rank_layers, total_parameters
from megatron_poro.planning.memory import attention_on_a_gpu
from megatron_poro.planning.picture import pipeline_picture
from megatron_poro.planning.pipeline import simulate
from megatron_poro.planning.recomputing import least_recomputation, recompute_words, room_for_tensors
from megatron_poro.planning.traffic import links
from megatron_poro.schedule.plan import plan_run
from megatron_poro.units import format_bytes, format_seconds

_OF_THE_PLAN = ("hardware", "nodes", "blocked_seconds", "restart_seconds")
_OF_THE_CLUSTER = ("cluster",)
_NOTES = """\
  poro plan experiment=poro_34b hardware=lumi_g nodes=128
  poro plan experiment=poro_34b cluster=lumi nodes=128
  poro plan experiment=poro_34b hardware=lumi_g nodes=128 --search
  poro plan experiment=poro_34b hardware=lumi_g --picture step.svg
  poro plan experiment=poro_34b hardware=lumi_g nodes=128 --simulate-rank 517
"""


def main(argv: Sequence[str]) -> int:
    """Runs ``poro plan``; raises ``ConfigError`` if the config, the machine or the layout cannot be."""
    arguments = parse_selection(_parser(), argv)
    chosen = selection(arguments)
    cluster = _cluster(chosen)
    request = _request(chosen, cluster)
    own = tuple(word for word in chosen.overrides if not _is_of(word, _OF_THE_PLAN + _OF_THE_CLUSTER))
    config = dataclasses.replace(chosen, overrides=own).load()
    world_size = _world_size(config, request)
    backend = attention_on_a_gpu(config)
    if arguments.search:
        for line in search_rows(config, request.hardware, world_size=world_size, backend=backend, top=arguments.top):
            print(line)
        return 0
    validate(config, world_size=world_size)
    found = forecast(config, request.hardware, world_size=world_size, backend=backend)
    jobs = None if cluster is None else _jobs(config, cluster, found)
    lines, record = _simulated(config, found, rank=arguments.simulate_rank, backend=backend)
    if arguments.json:
        print(json.dumps({**_record(found, jobs), **record}, indent=1))
    else:
        _print(config, request, found, start=arguments.start)
        if cluster is not None and jobs is not None:
            print("\n".join(_job_rows(cluster, jobs)))
        print("\n".join(lines), end="\n" if lines else "")
    if arguments.picture is not None:
        arguments.picture.write_text(_picture(config, request.hardware, found), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro plan", description=__doc__, epilog=_NOTES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_selection_arguments(parser)
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--search", action="store_true", help="rank every layout that uses all devices")
    one_of.add_argument(
        "--simulate-rank",
        type=int,
        metavar="N",
        help="let the engine of rank N take a step without numbers or neighbours, beside the plan",
    )
    parser.add_argument("--top", type=int, default=20, metavar="N", help="with --search: how many to print (20)")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw a step of the pipeline, and the memory")
    parser.add_argument("--start", type=date.fromisoformat, default=date.today(), help="first day, YYYY-MM-DD (today)")
    parser.add_argument("--json", action="store_true", help="the numbers for a program")
    return parser


def _cluster(chosen: Selection) -> ClusterConfig | None:
    """The cluster that the overrides name, if they name one."""
    words = [word for word in chosen.overrides if _is_of(word, _OF_THE_CLUSTER)]
    if not words:
        return None
    # a plan is billed to nobody
    composed = compose([*words, "cluster.account=null"], config_name="submit", config_dirs=chosen.config_dirs)
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    return typed(SubmitConfig, values).cluster


def _request(chosen: Selection, cluster: ClusterConfig | None) -> PlanConfig:
    """The part of the overrides that is about the machine."""
    overrides = [word for word in chosen.overrides if _is_of(word, _OF_THE_PLAN)]
    if cluster is not None and not any(word.startswith("hardware=") for word in overrides):
        if cluster.hardware is None:
            raise ConfigError(
                f"cluster.hardware of site {cluster.site} is null, so its devices are not known; add hardware=NAME, a "
                "file of configs/hardware."
            )
        overrides.insert(0, f"hardware={cluster.hardware}")
    values = OmegaConf.to_container(
        compose(overrides, config_name="plan", config_dirs=chosen.config_dirs), resolve=True
    )
    assert isinstance(values, dict)
    return typed(PlanConfig, values)


def _is_of(word: str, sections: Sequence[str]) -> bool:
    return word.partition("=")[0].partition(".")[0] in sections


def _world_size(config: TrainConfig, request: PlanConfig) -> int:
    if request.nodes is not None:
        return request.nodes * request.hardware.devices_per_node
    if config.parallel.data is None:
        raise ConfigError("nodes has no value and parallel.data is null, so any number would do; add nodes=...")
    return replica_processes(config) * config.parallel.data


def _print(config: TrainConfig, request: PlanConfig, found: Forecast, *, start: date) -> None:
    print("\n".join([*_run_rows(config, request, found), "", *_rank_rows(config, request, found), ""]))
    print("\n".join([*_time_rows(found), "", *_cost_rows(config, request, found, start=start)]))


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


def _rank_rows(config: TrainConfig, request: PlanConfig, found: Forecast) -> Iterator[str]:
    room = room_for_tensors(request.hardware)
    verdict = "" if found.fits else ": TOO LITTLE"
    yield f"one process of each stage; {format_bytes(room)} of memory are for tensors{verdict}"
    memory = [["stage", *found.memory[0]._fields, "in all"]]
    for rank, parts in enumerate(found.memory):
        memory.append([str(rank), *(format_bytes(int(size)) for size in (*parts, parts.total))])
    yield from columns(memory)
    yield from _recompute_rows(config, request.hardware, found)
    yield ""
    yield "and what it sends in a step"
    sent = [["stage", "blocks", "parameters", *found.traffic[0]._fields, "in all"]]
    for rank, (layers, traffic) in enumerate(zip(rank_layers(config), found.traffic, strict=True)):
        parameters = held_parameters(layers, config.parallel.tensor)
        blocks = sum(layer.is_block for layer in layers)
        sizes = (format_bytes(int(size)) for size in (*traffic, traffic.total))
        sent.append([str(rank), str(blocks), f"{parameters:,}", *sizes])
    yield from columns(sent)


def _recompute_rows(config: TrainConfig, hardware: HardwareConfig, found: Forecast) -> Iterator[str]:
    """The least recomputation with which this layout fits, where it is not what the config has."""
    backend = attention_on_a_gpu(config)
    least = least_recomputation(config, hardware, world_size=found.world_size, backend=backend)
    if least is None:
        yield "no recomputation makes this layout fit; cut it finer, or take smaller microbatches"
        return
    words = recompute_words(least)
    if words == recompute_words(config):
        return
    planned = forecast(least, hardware, world_size=found.world_size, backend=backend)
    most = format_bytes(int(max(part.total for part in planned.memory)))
    gain = f", {found.time.total / planned.time.total:.2f} times as fast" if found.fits else ""
    yield f"just fits, with {most}: {planned.time.total:.2f} s a step{gain}"
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
    for milestone in plan_run(config, world_size=found.world_size).milestones:
        day = start + timedelta(seconds=milestone.step * found.time.total)
        yield f"milestone   {milestone.label:>8}  step {milestone.step:>9,}  {day.isoformat()}"


def _jobs(config: TrainConfig, cluster: ClusterConfig, found: Forecast) -> Estimate:
    """The Slurm jobs of the run at the predicted speed."""
    total = plan_run(config, world_size=found.world_size)
    return estimate(
        cluster,
        nodes=-(-found.world_size // cluster.train.tasks_per_node),
        tokens_left=total.total_steps * total.tokens_per_step,
        speed=Speed(found.speed.tokens_per_second, "predicted"),
    )


def _job_rows(cluster: ClusterConfig, jobs: Estimate) -> Iterator[str]:
    per_hour = cluster.gpu_hours_per_node_hour
    billed = "" if per_hour is None else f", {jobs.node_hours * per_hour:,.0f} GPU-hours billed"
    yield (
        f"jobs        {jobs.jobs} of {cluster.train.walltime}, {format_seconds(jobs.job_seconds)} of steps each; "
        f"{jobs.node_hours:,.0f} node-hours{billed}"
    )


def _simulated(
    config: TrainConfig, found: Forecast, *, rank: int | None, backend: AttentionBackend
) -> tuple[list[str], dict[str, object]]:
    """What there is to print of a simulated rank, and to record."""
    if rank is None:
        return [], {}
    # by name, because it needs torch and a plan does not
    simulated = importlib.import_module("megatron_poro.cli.plan_rank").simulated
    lines, record = simulated(config, found, rank=rank, backend=backend)
    return ["", *lines], {"simulated": record}


def _picture(config: TrainConfig, hardware: HardwareConfig, found: Forecast) -> str:
    parallel, batch = config.parallel, batch_plan(config, found.world_size)
    link = links(config, hardware, world_size=found.world_size)
    timeline = simulate(
        config.engine.pipeline_schedule,
        ranks=parallel.pipeline,
        microbatches=batch.microbatches,
        seconds=PassTimes(config, hardware, link),
        transfer_seconds=transfer_seconds(config, link),
    )
    return pipeline_picture(
        timeline,
        found.memory,
        after=[("rest of the sums of gradients", found.time.data), ("optimizer and new weights", found.time.optimizer)],
        device_bytes=hardware.device_memory_bytes,
        room_bytes=room_for_tensors(hardware),
        title=(
            f"One step of {config.run.name} on {hardware.name}: tensor {parallel.tensor} x pipeline "
            f"{parallel.pipeline} x data {batch.data_size}, {config.engine.pipeline_schedule.value}, "
            f"{batch.microbatches} microbatches of {batch.microbatch_samples}"
        ),
        num_ranks=parallel.pipeline,
    )


def _record(found: Forecast, jobs: Estimate | None) -> dict[str, object]:
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
    }
