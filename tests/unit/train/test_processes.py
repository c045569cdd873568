"""Processes meet, with or without a launcher, and one of them tells an error."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]  # public, but not in torch's __all__

from megatron_poro.errors import ConfigError
from megatron_poro.parallel.agreement import World
from megatron_poro.train.launch import Launch
from megatron_poro.train.peers import Peer
from megatron_poro.train.processes import UNGUARDED, Processes, device_of, joined, sign_of_a_lost_peer
from megatron_poro.train.watchdog import Watchdog
from tests.support.ranks import free_port, run_ranks


def _claim() -> list[bool]:
    launch = Launch(rank=dist.get_rank(), size=dist.get_world_size())
    store = dist.distributed_c10d._get_default_store()
    peers = [Peer.this_process(rank) for rank in range(launch.size)]
    watchdog = Watchdog(Path(), peers, rank=launch.rank, session="s", guards=UNGUARDED)
    processes = Processes(launch, torch.device("cpu"), World.default(), store, watchdog)
    return [processes.claims_report(), processes.claims_report()]


def test_exactly_one_process_claims_the_report() -> None:
    claims = run_ranks(_claim, world=3)
    assert sum(claim for claims_of_rank in claims for claim in claims_of_rank) == 1


def test_one_process_needs_no_group() -> None:
    with joined(Launch(), needs_group=False) as processes:
        assert not dist.is_initialized()
        assert processes.world.any(True)
        assert not processes.world.any(False)
        assert processes.world.is_first
        assert processes.claims_report()
        with pytest.raises(ConfigError, match="a sentence"), processes.world.together():
            raise ConfigError("a sentence")


def _join_alone() -> tuple[bool, int, bool]:
    dist.destroy_process_group()
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    with joined(Launch(), needs_group=True) as processes:
        inside = (dist.is_initialized(), dist.get_world_size(), processes.world.any(True))
    assert not dist.is_initialized()
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)  # what run_ranks takes down
    return inside


def test_one_process_can_have_a_group_without_a_launcher() -> None:
    assert run_ranks(_join_alone, world=1) == [(True, 1, True)]


def _join_by_launcher(port: int) -> tuple[int, int]:
    launch = Launch(rank=dist.get_rank(), local_rank=dist.get_rank(), size=dist.get_world_size())
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)
    with joined(launch, needs_group=True) as processes:
        assert processes.world.any(launch.rank == 1)
        place = (dist.get_rank(), dist.get_world_size())
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    return place


def test_processes_of_a_launcher_meet() -> None:
    assert run_ranks(_join_by_launcher, free_port(), world=2) == [(0, 2), (1, 2)]


def test_denormal_numbers_are_flushed_on_a_cpu() -> None:
    torch.set_flush_denormal(False)
    assert device_of(Launch()) == torch.device("cpu")
    assert (torch.tensor([1e-39]) * 1.0).item() == 0.0
    torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    ("error", "sign"),
    [
        (RuntimeError("[gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:1"), "Connection closed by peer"),
        (RuntimeError("[..] writev [10.0.0.2]:99: Broken pipe"), "Broken pipe"),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), None),
        (ValueError("Broken pipe"), None),
    ],
)
def test_only_a_closed_connection_is_a_lost_process(error: Exception, sign: str | None) -> None:
    assert sign_of_a_lost_peer(error) == sign
