"""The look at the nodes before training, on a real Slurm whose nodes have network interfaces of their own."""

import json
from collections.abc import Callable

import pytest

from tests.slurm.chained_run import REPLICAS, TWO_NODES, ChainedRun

NETWORK = {"preflight": True, "interfaces": ["hsn0", "hsn3"]}
ON_CPUS = {**TWO_NODES, "gpus_per_node": 0}


def test_good_nodes_are_timed_and_train(chained: Callable[..., ChainedRun], undisturbed: dict[str, float]) -> None:
    run = chained(job=ON_CPUS, changes=REPLICAS, step_seconds=0, cluster=NETWORK)
    run.submit()
    run.wait_until_done()
    run.assert_complete()
    assert run.loss() == undisturbed["two"]
    (network,) = (run.run_folder / "job" / "attempts").glob("*/preflight/network.json")
    report = json.loads(network.read_text())
    assert len(report["hosts"]) == len(set(report["hosts"])) == 2
    assert len(report["pairs"]) == 1
    assert "rank map: node 0 has rank 0: stage 0, replica 0" in run.output()
    assert run.events("strike") == []


def test_broken_node_is_named_and_left_out_after_two_strikes(
    chained: Callable[..., ChainedRun], undisturbed: dict[str, float]
) -> None:
    run = chained(job=ON_CPUS, changes=REPLICAS, step_seconds=0, cluster=NETWORK)
    broken = "nid005001"
    run.slurm.node("exec", broken, "ip", "link", "set", "hsn3", "down")
    try:
        run.submit()
        run.wait_until_done()
    finally:
        run.slurm.node("exec", broken, "ip", "link", "set", "hsn3", "up")
    run.assert_complete()
    assert run.loss() == undisturbed["two"]
    assert [(event["host"], event["why"]) for event in run.events("strike")] == [(broken, "interface hsn3 is down")] * 2
    assert [broken in event["hosts"] for event in run.events("start")] == [True, True, False]
    assert [event["reason"] for event in run.events("end")][:2] == [
        "the pre-flight found a fault; nothing was started"
    ] * 2


@pytest.mark.parametrize("limit", ["10000T"])
def test_full_disk_stops_the_chain_before_it_trains(chained: Callable[..., ChainedRun], limit: str) -> None:
    run = chained(
        job=ON_CPUS, cluster={**NETWORK, "preflight_network": False, "min_free_bytes": limit}, changes=REPLICAS
    )
    run.submit()
    run.wait_until_done()
    (end,) = run.events("end")
    assert end["verdict"] == "look"
    assert "make room" in run.output()
    assert run.events("strike") == []
    assert not (run.run_folder / "metrics.jsonl").exists()
