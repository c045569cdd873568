"""How fast pairs of nodes add up a tensor together. A node that is slow with every partner is itself the slow one.

In each round the nodes are paired anew, all pairs at once, as the teams of a tournament are; three rounds give every
node three partners, whatever the number of nodes.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not in __all__

from megatron_poro.cluster.job_folder import JobSettings

ROUNDS = 3
_REPEATS = 5
_MEETING = timedelta(seconds=120)
_DEVICE_ELEMENTS, _HOST_ELEMENTS = 32 * 1024 * 1024, 512 * 1024


def count_devices() -> int:
    """GPUs that PyTorch sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def pairings(nodes: int, rounds: int) -> list[list[tuple[int, int]]]:
    """Who speaks to whom in each round; with an odd number of nodes one rests.

    Source: the circle method for round-robin tournaments.
    """
    seats = [*range(nodes), *([-1] if nodes % 2 else [])]
    result = []
    for turn in range(min(rounds, len(seats) - 1)):
        circle = [seats[0], *(seats[1 + (i + turn) % (len(seats) - 1)] for i in range(len(seats) - 1))]
        half = len(circle) // 2
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        result.append([(min(a, b), max(a, b)) for a, b in pairs if -1 not in (a, b)])
    return result


def time_pairs(
    rank: int, size: int, local_rank: int, settings: JobSettings, *, host: str, address: str, port: int
) -> dict[str, Any] | None:
    """Meets the other tasks and times all-reduces; every task calls it.

    Args:
        rank: this task's number.
        size: number of tasks.
        local_rank: its number on the node.
        settings: how many tasks a node has.
        host: its node.
        address: where rank 0 is.
        port: where it listens.

    Returns:
        On rank 0 a report: ``hosts`` of the ranks, ``missing`` ranks, and ``pairs`` of nodes with their seconds.
    """
    store = TCPStore(address, port, size, rank == 0, timeout=_MEETING, wait_for_workers=False)
    store.set(f"host/{rank}", host)
    if rank == 0:
        missing = _missing(store, size)
        store.set("go", "no" if missing else "yes")
        if missing:
            return {"hosts": [], "missing": missing, "pairs": []}
    if store.get("go") != b"yes":
        return None
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if count_devices() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=_MEETING)
    pairs = _all_rounds(rank, size, settings.tasks_per_node, device)
    gathered: list[Any] | None = [None] * size if rank == 0 else None
    dist.gather_object(pairs, gathered, dst=0)
    dist.barrier()
    dist.destroy_process_group()
    if gathered is None:
        return None
    hosts = [store.get(f"host/{other}").decode() for other in range(size)]
    return {"hosts": hosts, "missing": [], "pairs": [pair for found in gathered for pair in found]}


def _missing(store: Any, size: int) -> list[int]:
    """Ranks that have not come within the time of the meeting."""
    end = time.monotonic() + _MEETING.total_seconds() / 2
    missing = list(range(size))
    while missing and time.monotonic() < end:
        missing = [other for other in missing if not store.check([f"host/{other}"])]
        if missing:
            time.sleep(0.2)
    return missing


def _all_rounds(rank: int, size: int, tasks_per_node: int, device: torch.device) -> list[tuple[int, int, float]]:
    """Pairs of nodes whose first task this one is, with their seconds."""
    node, nodes = rank // tasks_per_node, -(-size // tasks_per_node)
    tensor = torch.ones(_DEVICE_ELEMENTS if device.type == "cuda" else _HOST_ELEMENTS, device=device)
    measured = []
    for pairs in pairings(nodes, ROUNDS):
        for a, b in pairs:
            if node in (a, b):
                ranks = [*_ranks(a, tasks_per_node, size), *_ranks(b, tasks_per_node, size)]
                seconds = _time(ranks, tensor)
                if rank == ranks[0]:
                    measured.append((a, b, seconds))
        dist.barrier()
    return measured


def _ranks(node: int, tasks_per_node: int, size: int) -> range:
    return range(node * tasks_per_node, min(size, (node + 1) * tasks_per_node))


def _time(ranks: Sequence[int], tensor: torch.Tensor) -> float:
    """Least seconds of an all-reduce among some ranks; the first one, which connects them, does not count."""
    group = dist.new_group(list(ranks), use_local_synchronization=True)
    best = float("inf")
    for repeat in range(_REPEATS + 1):
        _wait_for(tensor)
        started = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        _wait_for(tensor)
        if repeat:
            best = min(best, time.perf_counter() - started)
    dist.destroy_process_group(group)
    return best


def _wait_for(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
