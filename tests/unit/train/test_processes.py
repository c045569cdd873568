"""Processes agree on flags, fail with the same error, and tell it once."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]  # public, but not in torch's __all__

from megatron_poro.errors import ConfigError, DataError, PoroError
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.train.launch import Launch
from megatron_poro.train.processes import Processes, device_of, joined
from tests.support.ranks import run_ranks


def _processes(store: Store | None = None) -> Processes:
    launch = Launch(rank=dist.get_rank(), size=dist.get_world_size())
    return Processes(launch, torch.device("cpu"), AxisGroup(launch.rank, launch.size, dist.group.WORLD), store)


def _flag_of_one_rank() -> tuple[bool, bool]:
    processes = _processes()
    return processes.any(processes.launch.rank == 1), processes.any(False)


def test_flag_of_one_process_is_the_flag_of_all() -> None:
    assert run_ranks(_flag_of_one_rank, world=3) == [(True, False)] * 3


def _fail_on(ranks: tuple[int, ...]) -> str:
    processes = _processes()
    try:
        with processes.together():
            if processes.launch.rank in ranks:
                raise DataError(f"file of rank {processes.launch.rank} is missing.")
    except PoroError as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def test_error_of_one_process_becomes_the_same_error_on_all() -> None:
    assert run_ranks(_fail_on, (2,), world=3) == ["DataError: file of rank 2 is missing."] * 3


def test_of_several_errors_the_lowest_rank_is_told() -> None:
    assert run_ranks(_fail_on, (1, 2), world=3) == ["DataError: file of rank 1 is missing."] * 3


def test_block_without_error_raises_nothing() -> None:
    assert run_ranks(_fail_on, (), world=2) == ["fine"] * 2


def _claim() -> list[bool]:
    processes = _processes(dist.distributed_c10d._get_default_store())
    return [processes.claims_report(), processes.claims_report()]


def test_exactly_one_process_claims_the_report() -> None:
    claims = run_ranks(_claim, world=3)
    assert sum(claim for claims_of_rank in claims for claim in claims_of_rank) == 1


def test_one_process_needs_no_group() -> None:
    with joined(Launch(), needs_group=False) as processes:
        assert not dist.is_initialized()
        assert processes.any(True)
        assert not processes.any(False)
        assert processes.is_first
        assert processes.claims_report()
        with pytest.raises(ConfigError, match="a sentence"), processes.together():
            raise ConfigError("a sentence")


def _join_alone() -> tuple[bool, int, bool]:
    dist.destroy_process_group()
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    with joined(Launch(), needs_group=True) as processes:
        inside = (dist.is_initialized(), dist.get_world_size(), processes.any(True))
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
        assert processes.any(launch.rank == 1)
        place = (dist.get_rank(), dist.get_world_size())
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    return place


def test_processes_of_a_launcher_meet() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert run_ranks(_join_by_launcher, port, world=2) == [(0, 2), (1, 2)]


def test_denormal_numbers_are_flushed_on_a_cpu() -> None:
    torch.set_flush_denormal(False)
    assert device_of(Launch()) == torch.device("cpu")
    assert (torch.tensor([1e-39]) * 1.0).item() == 0.0
    torch.set_flush_denormal(False)
