"""``poro submit``: a training run, or one command, as jobs of a Slurm cluster.

The config of the run and what is asked of the cluster are checked before anything is written; what is then written into
the run folder is all that the jobs read.
"""

import argparse
import dataclasses
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from megatron_poro.cli.checking import check_config
from megatron_poro.cluster import slurm
from megatron_poro.cluster.chain import last_step, saved_step
from megatron_poro.cluster.estimate import Speed, assumed_speed, estimate, measured_speed
from megatron_poro.cluster.job_folder import COPIED, JobFolder, JobSettings, job_name
from megatron_poro.cluster.ledger import append
from megatron_poro.cluster.limits import KINDS, check_job
from megatron_poro.cluster.rank_map import check_rank_map, describe_rank_map
from megatron_poro.cluster.scripts import command_script, training_script
from megatron_poro.cluster.templates import site_file, slurm_folder
from megatron_poro.config.cluster import ClusterConfig, SubmitConfig
from megatron_poro.config.command_line import Selection, add_selection_arguments, parse_selection, selection
from megatron_poro.config.derived import batch_plan, replica_processes, run_folder
from megatron_poro.config.load import compose, load_plan
from megatron_poro.config.plan_rules import validate_plan
from megatron_poro.config.run import TrainConfig
from megatron_poro.config.typed import typed
from megatron_poro.errors import ConfigError
from megatron_poro.parallel.topology import Topology
from megatron_poro.planning.memory import attention_on_a_gpu, rank_memory
from megatron_poro.schedule.plan import plan_run
from megatron_poro.units import format_bytes, format_seconds

_NOTES = """\
  poro submit experiment=poro_34b cluster=lumi cluster.account=project_465000000 nodes=128
  poro submit cluster=lumi --job export -- export runs/poro_34b --milestones
  poro submit cluster=lumi --job tokenize --array 16 -- data tokenize --input corpus/* --output data/web --tokenizer T
  poro submit cluster=lumi --job tokenize --after 123 -- data merge --shards --output data/web
"""


def main(argv: Sequence[str]) -> int:
    """Runs ``poro submit``; returns the exit status. Raises ``PoroError`` where the cluster or the config says no."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    arguments = parse_selection(_parser(), words[:cut])
    chosen = selection(arguments)
    request = _request(chosen)
    if arguments.job == "train":
        if cut < len(words):
            raise ConfigError("-- and a command belong to --job; a training run is described by its config.")
        return _submit_run(chosen, request, arguments)
    return _submit_command(words[cut + 1 :], chosen, request.cluster, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro submit",
        description="Submit a training run, which goes on from job to job to its end, or a single command.",
        epilog=_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_selection_arguments(parser)
    parser.add_argument("--job", choices=KINDS, default="train", help="what kind of job; all but train take -- COMMAND")
    parser.add_argument("--array", type=int, metavar="N", help="with --job tokenize: N jobs that do a part each")
    parser.add_argument("--after", metavar="JOB", help="with --job: start when this job has succeeded")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--print", action="store_true", help="print the scripts, submit nothing, write nothing")
    what.add_argument("--test-only", action="store_true", help="ask Slurm when the job would start, submit nothing")
    what.add_argument("--write", action="store_true", help="write the files and print the command that submits them")
    return parser


def _request(chosen: Selection) -> SubmitConfig:
    """The part of the overrides that is about the cluster."""
    overrides = [word for word in chosen.overrides if _is_about_cluster(word)]
    composed = compose(overrides, config_name="submit", config_dirs=chosen.config_dirs)
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    return typed(SubmitConfig, values)


def _is_about_cluster(word: str) -> bool:
    return word.partition("=")[0].partition(".")[0] in ("cluster", "nodes")


# --- a training run --------------------------------------------------------------------------------------------------


def _submit_run(chosen: Selection, request: SubmitConfig, arguments: argparse.Namespace) -> int:
    training = dataclasses.replace(
        chosen, overrides=tuple(word for word in chosen.overrides if not _is_about_cluster(word))
    )
    config, cluster = training.load(), request.cluster
    nodes = _nodes(config, request)
    tasks = cluster.train.tasks_per_node
    check_job(cluster, "train", nodes=nodes)
    check_config(config, world_size=nodes * tasks)
    topology = Topology(
        tensor=config.parallel.tensor,
        pipeline=config.parallel.pipeline,
        data=nodes * tasks // replica_processes(config),
    )
    check_rank_map(topology, tasks_per_node=tasks)
    memory = list(_check_memory(config, cluster, topology, chosen.config_dirs))

    working_folder = Path.cwd()
    folder = JobFolder((working_folder / run_folder(config)).absolute())
    name = job_name(folder.run)
    site = site_file(cluster.site, chosen.config_dirs)
    script = training_script(cluster, folder, name=name, nodes=nodes, working_folder=working_folder)
    rows = [*_rows(config, cluster, folder, topology, nodes), *memory, *_cost(config, cluster, folder, nodes)]
    for key, text in rows:
        print(f"{'# ' if arguments.print else ''}{key:<10}  {text}")
    if arguments.print:
        _print_scripts(script, site)
        return 0
    if arguments.test_only:
        return _test_only(script)
    _refuse_second_chain(name, folder)
    settings = _settings(cluster, name=name, nodes=nodes, working_folder=working_folder)
    folder.write(config, settings, script=script, site=site)
    return _start(folder, arguments)


def _nodes(config: TrainConfig, request: SubmitConfig) -> int:
    """Nodes as given, else what the grid of the config fills."""
    given = request.nodes if request.nodes is not None else request.cluster.train.nodes
    if given is not None:
        return given
    tasks = request.cluster.train.tasks_per_node
    if config.parallel.data is None:
        raise ConfigError("nodes has no value and parallel.data is null, so any number would do; add nodes=...")
    return -(-replica_processes(config) * config.parallel.data // tasks)


def _check_memory(
    config: TrainConfig, cluster: ClusterConfig, topology: Topology, config_dirs: Sequence[Path]
) -> Iterator[tuple[str, str]]:
    """A row on memory; raises ``ConfigError`` if a device is too small."""
    if cluster.hardware is None:
        return
    plan = load_plan([f"hardware={cluster.hardware}"], config_dirs=config_dirs)
    validate_plan(plan)
    room = plan.hardware.room_for_tensors
    needs = rank_memory(config, world_size=topology.world_size, backend=attention_on_a_gpu(config))
    rank = max(range(len(needs)), key=lambda rank: needs[rank].total)
    parts = ", ".join(f"{format_bytes(round(size))} {name}" for name, size in needs[rank]._asdict().items() if size)
    total = format_bytes(round(needs[rank].total))
    if needs[rank].total > room:
        raise ConfigError(
            f"pipeline rank {rank} needs about {total} on each device, and tensors can have {format_bytes(room)} of "
            f"one of cluster.hardware={cluster.hardware}: {parts}. Use a larger parallel.tensor or parallel.pipeline, "
            "or engine.recompute=full; cluster.hardware=null does not ask."
        )
    yield (
        "memory",
        f"about {total} on a device of pipeline rank {rank}, where {format_bytes(room)} are for tensors: {parts}",
    )


def _rows(
    config: TrainConfig, cluster: ClusterConfig, folder: JobFolder, topology: Topology, nodes: int
) -> Iterator[tuple[str, str]]:
    job, batch = cluster.train, batch_plan(config, topology.world_size)
    yield "run", f"{config.run.name} in {folder.run}"
    yield (
        "job",
        f"{nodes} nodes of {job.partition or 'the default partition'}, {job.tasks_per_node} processes each, "
        f"{job.walltime} at most",
    )
    yield (
        "processes",
        f"{topology.world_size:,} = tensor {topology.tensor} x pipeline {topology.pipeline} x data {topology.data}; "
        f"{batch.microbatches} microbatches of {batch.microbatch_samples} a step",
    )
    places = describe_rank_map(
        topology, tasks_per_node=job.tasks_per_node, devices_per_module=cluster.devices_per_module
    )
    yield "rank map", "; ".join(places)


def _cost(config: TrainConfig, cluster: ClusterConfig, folder: JobFolder, nodes: int) -> Iterator[tuple[str, str]]:
    """How long the rest of the run takes, and of what."""
    world_size = nodes * cluster.train.tasks_per_node
    plan = plan_run(config, world_size=world_size)
    left = last_step(config, world_size=world_size) - saved_step(folder.run)
    yield "to do", f"{left:,} of {plan.total_steps:,} steps, {left * plan.tokens_per_step:,} tokens"
    speed = _speed(config, cluster, folder, world_size)
    if speed is None:
        yield "time", "not known: no speed is measured yet and cluster.assumed_tflops is null"
        return
    cost = estimate(cluster, nodes=nodes, tokens_left=left * plan.tokens_per_step, speed=speed)
    yield "speed", f"{speed.tokens_per_second:,.0f} tokens/s, {speed.origin}"
    per_hour = cluster.gpu_hours_per_node_hour
    gpu_hours = "" if per_hour is None else f", {cost.node_hours * per_hour:,.0f} GPU-hours as billed"
    yield (
        "time",
        f"{cost.training_seconds / 3600:,.1f} h of steps ({format_seconds(cost.training_seconds)}); with the start of "
        f"each job {cost.node_hours:,.0f} node-hours{gpu_hours}",
    )
    yield "jobs", f"{cost.jobs}, each with {format_seconds(cost.job_seconds)} for steps"


def _speed(config: TrainConfig, cluster: ClusterConfig, folder: JobFolder, world_size: int) -> Speed | None:
    return measured_speed(folder.run / "metrics.jsonl") or assumed_speed(config, cluster, world_size=world_size)


def _settings(cluster: ClusterConfig, *, name: str, nodes: int, working_folder: Path) -> JobSettings:
    return JobSettings(
        name=name,
        nodes=nodes,
        tasks_per_node=cluster.train.tasks_per_node,
        gpus_per_node=cluster.train.gpus_per_node,
        max_fruitless_jobs=cluster.max_fruitless_jobs,
        devices_per_module=cluster.devices_per_module,
        interfaces=cluster.interfaces,
        min_shared_memory_bytes=cluster.min_shared_memory_bytes,
        min_free_bytes=cluster.min_free_bytes,
        slow_factor=cluster.slow_factor,
        preflight_network=cluster.preflight_network,
        working_folder=str(working_folder),
    )


def _refuse_second_chain(name: str, folder: JobFolder) -> None:
    """One chain of jobs is enough for a run."""
    if slurm.is_here() and (jobs := slurm.jobs_called(name)):
        numbers = ", ".join(job.job for job in jobs)
        raise ConfigError(
            f"{folder.run} has jobs in the queue already ({numbers}). `poro status {folder.run}` shows them; to submit "
            "with other settings, `poro stop` the run before."
        )


def _start(folder: JobFolder, arguments: argparse.Namespace) -> int:
    """Submits the first job, or says how."""
    folder.stop_mark.unlink(missing_ok=True)
    append(folder.ledger, "resume", forgive=False)
    if arguments.write:
        print(f"written to {folder.path}; submit with\n  sbatch {shlex.quote(str(folder.script))}")
        return 0
    print(f"submitted  job {slurm.submit(folder.script, singleton=True)}; poro status {folder.run}")
    return 0


# --- a single command ------------------------------------------------------------------------------------------------


def _submit_command(
    words: Sequence[str], chosen: Selection, cluster: ClusterConfig, arguments: argparse.Namespace
) -> int:
    kind: str = arguments.job
    others = [word for word in chosen.overrides if not _is_about_cluster(word)]
    if others:
        raise ConfigError(f"{' '.join(others)}: --job {kind} takes keys of the cluster only; a command goes behind --.")
    if not words:
        raise ConfigError(f"--job {kind} needs a command: --job {kind} -- export runs/mine --milestones, for instance.")
    if arguments.array is not None and (kind != "tokenize" or arguments.array < 1):
        raise ConfigError(
            f"--array {arguments.array} is for --job tokenize, with 1 or more jobs; this is --job {kind}."
        )
    check_job(cluster, kind, nodes=1)
    script = command_script(
        cluster,
        kind,
        shlex.join(words),
        name=f"poro-{kind}",
        working_folder=Path.cwd(),
        array=arguments.array,
        after=arguments.after,
        folders=chosen.config_dirs,
    )
    if arguments.print:
        print(script, end="")
        return 0
    if arguments.test_only:
        return _test_only(script)
    path = Path(f"poro-{kind}.sbatch").absolute()
    path.write_text(script, encoding="utf-8")
    if arguments.write:
        print(f"submit with\n  sbatch {shlex.quote(str(path))}")
        return 0
    print(f"submitted  job {slurm.submit(path)}")
    return 0


def _print_scripts(script: str, site: Path) -> None:
    """The job script and what it reads, one after the other."""
    others = {**{name: slurm_folder() / name for name in COPIED}, "site.sh": site}
    print(f"\n{script}", end="")
    for name, path in others.items():
        print(f"\n# {'-' * 20} {name} {'-' * 20}\n\n{path.read_text(encoding='utf-8')}", end="")


def _test_only(script: str) -> int:
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch", encoding="utf-8") as file:
        file.write(script)
        file.flush()
        print(slurm.would_start(Path(file.name)))
    return 0
