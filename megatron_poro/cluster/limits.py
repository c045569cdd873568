"""Whether a cluster takes a job, asked before Slurm is."""

from collections.abc import Iterator

from megatron_poro.cluster.walltime import format_walltime, parse_walltime
from megatron_poro.config.cluster import ClusterConfig, JobConfig, PartitionConfig
from megatron_poro.config.typed import enumerate_words
from megatron_poro.errors import ConfigError

KINDS = ("train", "tokenize", "export", "publish", "evaluate")
"""The kinds of jobs; each has a section of the cluster's config."""


def job_of(cluster: ClusterConfig, kind: str) -> JobConfig:
    """What a kind of job asks for."""
    job: JobConfig = getattr(cluster, kind)
    return job


def check_job(cluster: ClusterConfig, kind: str, *, nodes: int) -> None:
    """Refuses a job that the cluster would refuse, or hold for ever.

    Raises:
        ConfigError: one line per problem.
    """
    problems = list(_problems(cluster, kind, nodes))
    if problems:
        raise ConfigError("\n".join(problems))


def _problems(cluster: ClusterConfig, kind: str, nodes: int) -> Iterator[str]:
    job, key = job_of(cluster, kind), f"cluster.{kind}"
    sizes = {
        f"{key}.nodes": nodes,
        f"{key}.tasks_per_node": job.tasks_per_node,
        f"{key}.cpus_per_task": job.cpus_per_task,
    }
    yield from (f"{name}={size} must be at least 1." for name, size in sizes.items() if size < 1)
    try:
        seconds = parse_walltime(job.walltime)
    except ValueError as error:
        yield f"{key}.walltime={error}."
        return
    margin = cluster.signal_seconds + cluster.startup_seconds
    if kind == "train" and seconds <= margin:
        yield (
            f"{key}.walltime={job.walltime} leaves no time to train: {cluster.startup_seconds} s pass before the first "
            f"step (cluster.startup_seconds) and the last {cluster.signal_seconds} s are for saving "
            f"(cluster.signal_seconds). Use more than {format_walltime(margin)}, or lower them."
        )
    partition = _partition(cluster, job, key)
    if partition is not None:
        yield from _beyond(partition, job, key, nodes, seconds)


def _partition(cluster: ClusterConfig, job: JobConfig, key: str) -> PartitionConfig | None:
    """The partition a job goes to; ``None`` if the cluster lists none or the choice is Slurm's."""
    if job.partition is None or not cluster.partitions:
        return None
    for partition in cluster.partitions:
        if partition.name == job.partition:
            return partition
    known = enumerate_words(partition.name for partition in cluster.partitions)
    raise ConfigError(f"{key}.partition={job.partition} is not one of this cluster's; use {known}.")


def _beyond(partition: PartitionConfig, job: JobConfig, key: str, nodes: int, seconds: int) -> Iterator[str]:
    """A sentence for each limit of a partition that a job passes."""
    longest = parse_walltime(partition.max_walltime)
    if seconds > longest:
        yield (
            f"{key}.walltime={job.walltime} is longer than {partition.name} allows "
            f"({format_walltime(longest)}). Ask for less: a run goes on in the next job."
        )
    if nodes > partition.max_nodes:
        yield (
            f"{nodes} nodes are more than a job of {partition.name} may have ({partition.max_nodes}). Use fewer, or "
            f"another {key}.partition."
        )
    if job.gpus_per_node > partition.max_gpus_per_node:
        yield (
            f"{key}.gpus_per_node={job.gpus_per_node} is more than a node of {partition.name} has "
            f"({partition.max_gpus_per_node})."
        )
    cpus = job.tasks_per_node * job.cpus_per_task
    if cpus > partition.max_cpus_per_node:
        yield (
            f"{key}.tasks_per_node={job.tasks_per_node} x {key}.cpus_per_task={job.cpus_per_task} is {cpus} cores, and "
            f"a job has {partition.max_cpus_per_node} of a node of {partition.name}. Lower one of them."
        )
