"""What the tasks found, read and judged: which node is at fault, and whether the job may train."""

import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from megatron_poro.cluster import ledger
from megatron_poro.cluster.chain import GO, LOOK, RETRY, read_failures, strike
from megatron_poro.cluster.job_folder import JobFolder, JobSettings
from megatron_poro.cluster.preflight import FOLDER, NETWORK_NAME, Finding
from megatron_poro.cluster.rank_map import describe_rank_map, misplaced
from megatron_poro.config.derived import replica_processes
from megatron_poro.logs import get_logger
from megatron_poro.parallel.topology import Topology
from megatron_poro.units import format_bytes

logger = get_logger(__name__)


def judge(folder: JobFolder, attempt: Path, *, job: str, restart: int) -> str:
    """Tells what was found, once, and gives nodes that are at fault a strike.

    Args:
        folder: the jobs of the run.
        attempt: folder of this start of the job.
        job: Slurm's number.
        restart: how often Slurm had started it before.

    Returns:
        ``go``; ``retry`` if a node cannot be used; ``look`` if it is not a node that is at fault.
    """
    settings = folder.settings()
    starts = [a for a in ledger.read(folder.ledger).attempts if (a.job, a.restart) == (job, restart)]
    hosts = starts[-1].hosts if starts else []
    findings = _findings(attempt / FOLDER)
    network = _network(attempt / FOLDER / NETWORK_NAME)
    broken, slow = _broken(attempt, hosts, findings, network, settings), _slow(network, settings)
    if len(hosts) > 1 and set(broken) == set(hosts) and len({tuple(problems) for problems in broken.values()}) == 1:
        logger.error("every node has the same problem, so none gets a strike: %s", "; ".join(broken[hosts[0]]))
        return RETRY
    for host, problems in {**slow, **broken}.items():
        logger.error("node %s: %s", host, "; ".join(problems))
        strike(folder, host, "; ".join(problems), job=job, restart=restart)
    free = min((finding.free_bytes for finding in findings), default=None)
    if free is not None and free < settings.min_free_bytes:
        logger.error(
            "%s are free for %s, fewer than cluster.min_free_bytes (%s); make room.",
            format_bytes(free), folder.run, format_bytes(settings.min_free_bytes),
        )  # fmt: skip
        return LOOK
    wrong = misplaced(network["hosts"], tasks_per_node=settings.tasks_per_node)
    if wrong:
        logger.error("tasks are not where the grid wants them: %s. srun must deal them in blocks.", "; ".join(wrong))
        return LOOK
    if broken:
        return RETRY
    _tell(folder, settings, findings, network)
    return GO


def _broken(
    attempt: Path, hosts: list[str], findings: list[Finding], network: dict[str, Any], settings: JobSettings
) -> dict[str, list[str]]:
    """Nodes that cannot be used, with what is wrong."""
    broken: dict[str, list[str]] = {}
    for finding in findings:
        for problem in finding.problems:
            broken.setdefault(finding.host, []).append(problem)
    common = Counter(json.dumps(finding.versions, sort_keys=True) for finding in findings).most_common(1)
    for finding in findings:
        if json.dumps(finding.versions, sort_keys=True) != common[0][0] and finding.host not in broken:
            broken[finding.host] = [f"has other versions than most nodes: {finding.versions}"]
    seen = {finding.host for finding in findings}
    for host in hosts:
        if host not in seen:
            broken.setdefault(host, []).append("its tasks did not get as far as looking at it")
    for rank in network["missing"]:
        host = hosts[rank // settings.tasks_per_node]
        broken.setdefault(host, ["cannot be reached from the first node"])
    failures = read_failures(attempt / "preflight.failures")
    if not broken and failures:
        first = min(failures, key=lambda failure: failure.unix_seconds)
        broken[first.host] = [f"rank {first.rank} ended with {first.code} when nodes were to speak to each other"]
    return broken


def _slow(network: dict[str, Any], settings: JobSettings) -> dict[str, list[str]]:
    """Nodes that were slow with every partner."""
    pairs = network["pairs"]
    if len(pairs) < 3:
        return {}
    best: dict[int, float] = {}
    for first, second, seconds in pairs:
        for node in (first, second):
            best[node] = min(best.get(node, seconds), seconds)
    usual = median(best.values())
    return {
        network["hosts"][node * settings.tasks_per_node]: [
            f"an all-reduce takes {seconds * 1000:.1f} ms at best, {usual * 1000:.1f} ms is usual"
        ]
        for node, seconds in best.items()
        if seconds > settings.slow_factor * usual
    }


def _tell(folder: JobFolder, settings: JobSettings, findings: list[Finding], network: dict[str, Any]) -> None:
    """What a person wants to find at the top of a log."""
    config, world_size = folder.config(), settings.nodes * settings.tasks_per_node
    topology = Topology(
        tensor=config.parallel.tensor,
        pipeline=config.parallel.pipeline,
        data=world_size // replica_processes(config),
    )
    for line in describe_rank_map(
        topology, tasks_per_node=settings.tasks_per_node, devices_per_module=settings.devices_per_module
    ):
        logger.info("rank map: %s", line)
    if findings:
        logger.info("versions: %s", ", ".join(f"{name} {version}" for name, version in findings[0].versions.items()))
    if network["pairs"]:
        times = [seconds for _, _, seconds in network["pairs"]]
        logger.info(
            "all-reduce of %d pairs of nodes: median %.1f ms, slowest %.1f ms",
            len(times), median(times) * 1000, max(times) * 1000,
        )  # fmt: skip


def _findings(folder: Path) -> list[Finding]:
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return [Finding(**json.loads(path.read_text(encoding="utf-8"))) for path in files if path.name != NETWORK_NAME]


def _network(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"hosts": [], "missing": [], "pairs": []}
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report
