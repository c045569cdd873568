"""How long a run takes, what it costs, and how many jobs it is, from a speed that is measured or assumed."""

import json
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from megatron_poro.cluster.walltime import parse_walltime
from megatron_poro.config.cluster import ClusterConfig
from megatron_poro.config.derived import batch_plan, recomputed_layers
from megatron_poro.config.run import TrainConfig
from megatron_poro.metrics import names
from megatron_poro.metrics.throughput import step_flops

_NEWEST_LINES = 200


@dataclass(frozen=True)
class Speed:
    """Tokens per second of the whole run, and where the number comes from."""

    tokens_per_second: float
    origin: str


@dataclass(frozen=True)
class Estimate:
    """What is left of a run.

    Attributes:
        training_seconds: time in which steps are taken.
        node_hours: hours of all nodes, starting and saving included.
        jobs: jobs that it takes.
        job_seconds: of each job, what is left for steps.
    """

    training_seconds: float
    node_hours: float
    jobs: int
    job_seconds: int


def measured_speed(metrics: Path) -> Speed | None:
    """The median speed of the newest lines of a run's metrics; ``None`` if it has none."""
    try:
        with metrics.open("rb") as file:
            lines = list(deque(file, maxlen=_NEWEST_LINES))
    except OSError:
        return None
    speeds = []
    for line in lines:
        try:
            speeds.append(float(json.loads(line)[names.TOKENS_PER_SECOND.key]))
        except (ValueError, KeyError, TypeError):
            continue
    return (
        Speed(median(speeds), f"measured by this run, median of {len(speeds)} lines of {metrics}") if speeds else None
    )


def assumed_speed(config: TrainConfig, cluster: ClusterConfig, *, world_size: int) -> Speed | None:
    """The speed at ``cluster.assumed_tflops``; ``None`` if nothing is assumed."""
    if cluster.assumed_tflops is None:
        return None
    batch = batch_plan(config, world_size)
    flops = step_flops(
        num_layers=config.model.num_layers,
        hidden_size=config.model.hidden_size,
        vocab_size=config.model.vocab_size,
        sequence_length=config.data.sequence_length,
        samples=batch.samples_per_step,
        recompute=config.engine.recompute,
        recomputed_layers=recomputed_layers(config),
    )
    steps_per_second = cluster.assumed_tflops * 1e12 * world_size / flops.hardware
    return Speed(
        steps_per_second * batch.tokens_per_step,
        f"assumed: {cluster.assumed_tflops:g} TFLOP/s per device (cluster.assumed_tflops)",
    )


def estimate(cluster: ClusterConfig, *, nodes: int, tokens_left: int, speed: Speed) -> Estimate:
    """What it takes to consume so many more tokens."""
    seconds = tokens_left / speed.tokens_per_second
    overhead = cluster.startup_seconds + cluster.signal_seconds
    job_seconds = parse_walltime(cluster.train.walltime) - overhead
    jobs = math.ceil(seconds / job_seconds)
    return Estimate(
        training_seconds=seconds,
        node_hours=nodes * (seconds + jobs * cluster.startup_seconds) / 3600,
        jobs=jobs,
        job_seconds=job_seconds,
    )
