"""``poro plan``: what a run needs and how fast it will be, from the config alone; no torch, no GPU, no data."""

import argparse
import dataclasses
import importlib
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from omegaconf import OmegaConf

from megatron_poro.cli.plan_rows import job_rows, plan_record, plan_rows
from megatron_poro.cli.plan_search import search_record, search_rows
from megatron_poro.cluster.estimate import Estimate, Speed, estimate
from megatron_poro.config.cluster import ClusterConfig, SubmitConfig
from megatron_poro.config.command_line import Selection, add_selection_arguments, parse_selection, selection
from megatron_poro.config.derived import batch_plan, replica_processes
from megatron_poro.config.hardware import HardwareConfig, PlanConfig
from megatron_poro.config.load import compose, load_plan
from megatron_poro.config.plan_rules import validate_plan
from megatron_poro.config.run import AttentionBackend, TrainConfig
from megatron_poro.config.typed import typed
from megatron_poro.config.validate import validate, validate_values
from megatron_poro.errors import ConfigError
from megatron_poro.planning.forecast import Forecast, forecast
from megatron_poro.planning.memory import attention_on_a_gpu
from megatron_poro.planning.passes import PassTimes, transfer_seconds
from megatron_poro.planning.picture import pipeline_picture
from megatron_poro.planning.pipeline import simulate
from megatron_poro.planning.search import SEARCHED
from megatron_poro.planning.traffic import links
from megatron_poro.schedule.plan import plan_run

_OF_THE_PLAN = ("hardware", "nodes", "blocked_seconds", "restart_seconds")
_OF_THE_CLUSTER = ("cluster",)
_TOP = 20
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
    _refuse_unused(arguments)
    chosen = selection(arguments)
    cluster = _cluster(chosen)
    request = _request(chosen, cluster)
    validate_plan(request)
    own = tuple(word for word in chosen.overrides if not _is_of(word, _OF_THE_PLAN + _OF_THE_CLUSTER))
    config = dataclasses.replace(chosen, overrides=own).load()
    validate_values(config)
    world_size = _world_size(config, request)
    if arguments.search:
        _search(config, request.hardware, world_size, arguments)
        return 0
    validate(config, world_size=world_size)
    backend = attention_on_a_gpu(config)
    found = forecast(config, request.hardware, world_size=world_size, backend=backend)
    jobs = None if cluster is None else _jobs(config, cluster, found)
    lines, record = _simulated(config, found, rank=arguments.simulate_rank, backend=backend)
    start = arguments.start or date.today()
    if arguments.json:
        print(json.dumps({**plan_record(config, found, jobs, start=start), **record}, indent=1))
    else:
        print("\n".join(plan_rows(config, request, found, backend=backend, start=start)))
        if cluster is not None and jobs is not None:
            print("\n".join(job_rows(cluster, jobs)))
        print("\n".join(lines), end="\n" if lines else "")
    if arguments.picture is not None:
        arguments.picture.write_text(_picture(config, request.hardware, found), encoding="utf-8")
    return 0


def _search(config: TrainConfig, hardware: HardwareConfig, world_size: int, arguments: argparse.Namespace) -> None:
    top: int = _TOP if arguments.top is None else arguments.top
    backend = attention_on_a_gpu(config)
    if arguments.json:
        record = search_record(config, hardware, world_size=world_size, backend=backend, top=top)
        print(json.dumps(record, indent=1))
        return
    for line in search_rows(config, hardware, world_size=world_size, backend=backend, top=top):
        print(line)


def _refuse_unused(arguments: argparse.Namespace) -> None:
    """Options that would change nothing are mistakes."""
    of_one = {"--picture": arguments.picture, "--start": arguments.start}
    if arguments.search:
        for option, value in of_one.items():
            if value is not None:
                raise ConfigError(
                    f"{option} {value} is about one layout, and --search ranks many. Leave one of them out, or plan "
                    f"a layout that was found with {option}."
                )
    elif arguments.top is not None:
        raise ConfigError(f"--top {arguments.top} is how many layouts --search prints; add --search, or leave it out.")
    if arguments.top is not None and arguments.top < 1:
        raise ConfigError(f"--top {arguments.top} must be at least 1 layout.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro plan", description=__doc__, epilog=_NOTES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_selection_arguments(parser)
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--search", action="store_true", help=SEARCHED)
    one_of.add_argument(
        "--simulate-rank",
        type=int,
        metavar="N",
        help="let the engine of rank N take a step without numbers or neighbours, beside the plan",
    )
    parser.add_argument("--top", type=int, metavar="N", help=f"with --search: how many to print ({_TOP})")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw a step of the pipeline, and the memory")
    parser.add_argument("--start", type=date.fromisoformat, metavar="YYYY-MM-DD", help="first day (today)")
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
    return load_plan(overrides, config_dirs=chosen.config_dirs)


def _is_of(word: str, sections: Sequence[str]) -> bool:
    return word.partition("=")[0].partition(".")[0] in sections


def _world_size(config: TrainConfig, request: PlanConfig) -> int:
    if request.nodes is not None:
        return request.nodes * request.hardware.devices_per_node
    if config.parallel.data is None:
        raise ConfigError("nodes has no value and parallel.data is null, so any number would do; add nodes=...")
    return replica_processes(config) * config.parallel.data


def _jobs(config: TrainConfig, cluster: ClusterConfig, found: Forecast) -> Estimate:
    """The Slurm jobs of the run at the predicted speed."""
    total = plan_run(config, world_size=found.world_size)
    return estimate(
        cluster,
        nodes=-(-found.world_size // cluster.train.tasks_per_node),
        tokens_left=total.total_steps * total.tokens_per_step,
        speed=Speed(found.speed.tokens_per_second, "predicted"),
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
        deferred=config.engine.deferred_weight_gradients,
    )
    return pipeline_picture(
        timeline,
        found.memory,
        after=[("rest of the sums of gradients", found.time.data), ("optimizer and new weights", found.time.optimizer)],
        device_bytes=hardware.device_memory_bytes,
        room_bytes=hardware.room_for_tensors,
        title=(
            f"One step of {config.run.name} on {hardware.name}: tensor {parallel.tensor} x pipeline "
            f"{parallel.pipeline} x data {batch.data_size}, {config.engine.pipeline_schedule.value}, "
            f"{batch.microbatches} microbatches of {batch.microbatch_samples}"
        ),
        num_ranks=parallel.pipeline,
    )
