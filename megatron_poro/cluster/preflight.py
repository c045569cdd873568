"""A look at the nodes of a job before it trains: what each task finds where it is, and how fast pairs of nodes speak.

Every task of a step runs :func:`look`. It writes what it found into the folder of the attempt before anything that can
hang, so that a node is named by what it did not write, too. :mod:`megatron_poro.cluster.preflight_report` judges.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_poro import __version__
from megatron_poro.cluster.job_folder import JobSettings
from megatron_poro.errors import ConfigError

FOLDER = "preflight"
NETWORK_NAME = "network.json"
_LIBRARIES = ("torch", "deepspeed")
_GET_FLAGS, _IS_UP, _IS_RUNNING = 0x8913, 0x1, 0x40


@dataclass(frozen=True)
class Finding:
    """What one task found.

    Attributes:
        host: its node.
        rank: its number.
        cpus: the cores it may use, as a mask in hexadecimal.
        free_bytes: free space on the file system of the run.
        versions: of this package and what it stands on.
        problems: what is wrong with the node, in sentences.
    """

    host: str
    rank: int
    cpus: str
    free_bytes: int
    versions: dict[str, str]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TaskPlace:
    """Where a task is, from what Slurm and the task script tell it."""

    host: str
    rank: int
    local_rank: int
    size: int
    masks: list[str]

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "TaskPlace":
        """Raises ``ConfigError`` outside a task of a job."""
        try:
            return cls(
                host=environment.get("SLURMD_NODENAME") or socket.gethostname(),
                rank=int(environment["RANK"]),
                local_rank=int(environment["LOCAL_RANK"]),
                size=int(environment["WORLD_SIZE"]),
                masks=[mask for mask in environment.get("PORO_CPU_MASKS", "").split(",") if mask],
            )
        except KeyError as missing:
            raise ConfigError(f"{missing} is not set: poro job preflight is run by the tasks of a job.") from None


def look(attempt: Path, settings: JobSettings, environment: Mapping[str, str]) -> int:
    """Looks at this task's place and, if that is wanted, at the network; returns the exit status.

    Args:
        attempt: folder of this start of the job.
        settings: what the job must know.
        environment: of the process.
    """
    place = TaskPlace.of(environment)
    folder = attempt / FOLDER
    folder.mkdir(exist_ok=True)
    finding = look_at_node(place, settings, run=attempt.parent.parent.parent)
    _write(folder / f"{place.host}.{place.local_rank}.json", asdict(finding))
    if settings.preflight_network:
        from megatron_poro.cluster.network_check import count_devices, time_pairs  # torch

        devices = count_devices()
        if devices < settings.gpus_per_node:
            finding.problems.append(f"has {devices} devices for PyTorch, not {settings.gpus_per_node}")
            _write(folder / f"{place.host}.{place.local_rank}.json", asdict(finding))
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"]) + 10_000
        report = time_pairs(
            place.rank, place.size, place.local_rank, settings, host=place.host, address=address, port=port
        )
        if report is not None:
            _write(folder / NETWORK_NAME, report)
    return 0


def look_at_node(place: TaskPlace, settings: JobSettings, *, run: Path) -> Finding:
    """What can be seen without speaking to others.

    Args:
        place: of this task.
        settings: what must be there.
        run: the run folder.
    """
    problems = []
    cpus = sum(1 << cpu for cpu in os.sched_getaffinity(0))
    if place.masks and cpus != int(place.masks[place.local_rank % len(place.masks)], 16):
        wanted = place.masks[place.local_rank % len(place.masks)]
        problems.append(f"local rank {place.local_rank} may use the cores {cpus:#x}, not {wanted}")
    if place.local_rank == 0:
        problems += [
            f"interface {name} is {state}" for name in settings.interfaces if (state := interface_state(name)) != "up"
        ]
        shared = shutil.disk_usage("/dev/shm").free
        if shared < settings.min_shared_memory_bytes:
            problems.append(
                f"/dev/shm has {shared:,} bytes of shared memory free, fewer than {settings.min_shared_memory_bytes:,}"
            )
    return Finding(
        host=place.host,
        rank=place.rank,
        cpus=f"{cpus:#x}",
        free_bytes=shutil.disk_usage(run).free,
        versions=_versions(),
        problems=problems,
    )


def interface_state(name: str) -> str:
    """``up`` (with a cable at the other end of which something is up, too), ``down`` or ``missing``.

    Asked of the kernel, not of /sys, which a container may show from elsewhere.

    Source: netdevice(7), SIOCGIFFLAGS.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _GET_FLAGS, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return "missing"
    (flags,) = struct.unpack("H", answer[16:18])
    return "up" if flags & _IS_UP and flags & _IS_RUNNING else "down"


def _versions() -> dict[str, str]:
    versions = {"megatron_poro": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "missing"
    return versions


def _write(path: Path, value: object) -> None:
    """Whole or not at all: a task can be killed at any moment."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
