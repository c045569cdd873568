"""What a look at the nodes finds, and whom it blames."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.cluster import ledger, preflight
from megatron_poro.cluster.chain import GO, LOOK, RETRY
from megatron_poro.cluster.job_folder import JobFolder, JobSettings
from megatron_poro.cluster.network_check import ROUNDS, pairings, time_pairs
from megatron_poro.cluster.preflight import FOLDER, NETWORK_NAME, TaskPlace, interface_state, look, look_at_node
from megatron_poro.cluster.preflight_report import judge
from megatron_poro.cluster.templates import slurm_folder
from megatron_poro.config.load import load_config
from megatron_poro.errors import ConfigError
from tests.support.ranks import run_ranks

HOSTS = ["nid000001", "nid000002", "nid000003", "nid000004"]
SETTINGS = JobSettings(
    name="mine-1", nodes=4, tasks_per_node=1, gpus_per_node=0, max_fruitless_jobs=3, devices_per_module=2,
    interfaces=["lo"], min_shared_memory_bytes=0, min_free_bytes=0, slow_factor=2.0, preflight_network=False,
    working_folder="/",
)  # fmt: skip


def place(**values: Any) -> TaskPlace:
    return TaskPlace(**{"host": "nid000001", "rank": 0, "local_rank": 0, "size": 4, "masks": [], **values})


def test_a_good_node_has_no_problem(tmp_path: Path) -> None:
    finding = look_at_node(place(), SETTINGS, run=tmp_path)
    assert finding.problems == []
    assert finding.free_bytes > 0
    assert set(finding.versions) == {"megatron_poro", "python", "torch", "deepspeed"}


def test_interfaces_that_are_not_up_are_named_once_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert interface_state("lo") == "up"
    settings = replace(SETTINGS, interfaces=["lo", "hsn77"])
    assert look_at_node(place(), settings, run=tmp_path).problems == ["interface hsn77 is missing"]
    assert look_at_node(place(local_rank=1), settings, run=tmp_path).problems == []
    monkeypatch.setattr(preflight, "interface_state", lambda name: "down")
    assert look_at_node(place(), SETTINGS, run=tmp_path).problems == ["interface lo is down"]


def test_little_shared_memory_is_called_by_its_name(tmp_path: Path) -> None:
    settings = replace(SETTINGS, min_shared_memory_bytes=10**18)
    (problem,) = look_at_node(place(), settings, run=tmp_path).problems
    assert "bytes of shared memory free, fewer than 1,000,000,000,000,000,000" in problem


def test_cores_that_are_not_the_masks_are_told(tmp_path: Path) -> None:
    own = hex(sum(1 << cpu for cpu in os.sched_getaffinity(0)))
    assert look_at_node(place(masks=["0x0", own], local_rank=1), SETTINGS, run=tmp_path).problems == []
    (problem,) = look_at_node(place(masks=["0xfe000000000000"]), SETTINGS, run=tmp_path).problems
    assert problem == f"local rank 0 may use the cores {own}, not 0xfe000000000000"


def test_outside_a_task_it_says_so() -> None:
    with pytest.raises(ConfigError, match="'RANK' is not set"):
        TaskPlace.of({})


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 7, 8, 128])
def test_nobody_meets_the_same_node_twice(nodes: int) -> None:
    rounds = pairings(nodes, ROUNDS)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy)) == nodes - nodes % 2
    met = [pair for pairs in rounds for pair in pairs]
    assert len(met) == len(set(met))
    assert all(0 <= a < b < nodes for a, b in met)


def _timed(port: int) -> dict[str, Any] | None:
    import torch.distributed as dist
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    rank, size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    report = time_pairs(
        rank, size, rank % 2, replace(SETTINGS, nodes=2, tasks_per_node=2), host=HOSTS[rank // 2],
        address="127.0.0.1", port=port,
    )  # fmt: skip
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)  # for run_ranks to take down
    return report


def test_pairs_of_nodes_are_timed(unused_port: int) -> None:
    report, *others = run_ranks(_timed, unused_port, world=4)
    assert others == [None] * 3
    assert report["hosts"] == [HOSTS[0]] * 2 + [HOSTS[1]] * 2
    ((first, second, seconds),) = report["pairs"]
    assert (first, second) == (0, 1)
    assert 0 < seconds < 60


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the judgement ---------------------------------------------------------------------------------------------------


class Job:
    """A job on four nodes whose tasks have looked around."""

    def __init__(self, root: Path) -> None:
        self.folder = JobFolder(root / "mine")
        config = load_config(["experiment=smoke_cpu", "parallel=single"])
        self.settings(SETTINGS, config)
        self.attempt = self.folder.path / "attempts" / "7.0"
        (self.attempt / FOLDER).mkdir(parents=True)
        ledger.append(self.folder.ledger, "start", job="7", restart=0, hosts=HOSTS, step=0)
        self.findings = {
            host: look_at_node(place(host=host, rank=n), SETTINGS, run=root) for n, host in enumerate(HOSTS)
        }
        self.network: dict[str, Any] = {"hosts": HOSTS, "missing": [], "pairs": []}

    def settings(self, settings: JobSettings, config: Any = None) -> None:
        site = slurm_folder() / "sites" / "generic.sh"
        self.folder.write(config or self.folder.config(), settings, script="", site=site)

    def judge(self) -> str:
        for host, finding in self.findings.items():
            (self.attempt / FOLDER / f"{host}.0.json").write_text(json.dumps(vars(finding)))
        (self.attempt / FOLDER / NETWORK_NAME).write_text(json.dumps(self.network))
        return judge(self.folder, self.attempt, job="7", restart=0)

    @property
    def strikes(self) -> dict[str, list[str]]:
        return ledger.read(self.folder.ledger).strikes


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_good_nodes_may_train(job: Job) -> None:
    assert job.judge() == GO
    assert job.strikes == {}


def test_a_broken_node_is_named_and_gets_a_strike(job: Job) -> None:
    job.findings[HOSTS[2]] = replace(job.findings[HOSTS[2]], problems=["interface hsn1 is down"])
    assert job.judge() == RETRY
    assert job.strikes == {HOSTS[2]: ["interface hsn1 is down"]}
    job.judge()
    assert job.folder.exclude.read_text() == HOSTS[2]


def test_what_every_node_has_no_node_is_to_blame_for(job: Job) -> None:
    for host, finding in job.findings.items():
        job.findings[host] = replace(finding, problems=["interface hsn1 is down"])
    assert job.judge() == RETRY
    assert job.strikes == {}


def test_a_node_that_says_nothing_is_the_one(job: Job) -> None:
    del job.findings[HOSTS[1]]
    assert job.judge() == RETRY
    assert list(job.strikes) == [HOSTS[1]]


def test_a_node_that_does_not_come_to_the_meeting_is_the_one(job: Job) -> None:
    job.network = {"hosts": [], "missing": [3], "pairs": []}
    assert job.judge() == RETRY
    assert job.strikes == {HOSTS[3]: ["cannot be reached from the first node"]}


def test_a_task_that_failed_at_the_meeting_names_its_node(job: Job) -> None:
    (job.attempt / "preflight.failures").write_text(f"9.0 {HOSTS[0]} 0 1\n5.0 {HOSTS[3]} 3 1\n")
    assert job.judge() == RETRY
    assert list(job.strikes) == [HOSTS[3]]


def test_other_versions_are_a_fault(job: Job) -> None:
    other = {**job.findings[HOSTS[0]].versions, "torch": "2.0.1"}
    job.findings[HOSTS[0]] = replace(job.findings[HOSTS[0]], versions=other)
    assert job.judge() == RETRY
    assert list(job.strikes) == [HOSTS[0]]


def test_a_slow_node_gets_a_strike_and_trains(job: Job) -> None:
    job.network["pairs"] = [(0, 1, 0.01), (2, 3, 0.05), (0, 3, 0.06), (1, 2, 0.01), (1, 3, 0.05), (0, 2, 0.01)]
    assert job.judge() == GO
    ((host, (why,)),) = job.strikes.items()
    assert host == HOSTS[3]
    assert "an all-reduce takes 50.0 ms at best" in why


def test_a_full_disk_is_no_nodes_fault(job: Job) -> None:
    job.settings(replace(SETTINGS, min_free_bytes=10**18))
    assert job.judge() == LOOK
    assert job.strikes == {}


def test_tasks_that_are_dealt_in_turn_are_no_nodes_fault(job: Job) -> None:
    job.settings(replace(SETTINGS, nodes=2, tasks_per_node=2))
    job.network["hosts"] = [HOSTS[0], HOSTS[1]] * 2
    assert job.judge() == LOOK
    assert job.strikes == {}


def test_every_task_writes_what_it_found(job: Job, tmp_path: Path) -> None:
    environment = {"SLURMD_NODENAME": "nid000009", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
    assert look(job.attempt, SETTINGS, environment) == 0
    found = json.loads((job.attempt / FOLDER / "nid000009.1.json").read_text())
    assert (found["host"], found["rank"], found["problems"]) == ("nid000009", 5, [])
