"""What is said and refused before a job is submitted. No Slurm."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.cli.main import main
from megatron_poro.cluster.estimate import Speed, assumed_speed, estimate, measured_speed
from megatron_poro.cluster.limits import check_job
from megatron_poro.cluster.rank_map import check_rank_map, describe_rank_map, misplaced
from megatron_poro.cluster.walltime import format_walltime, parse_walltime
from megatron_poro.config.load import load_config
from megatron_poro.errors import ConfigError, TopologyError
from megatron_poro.parallel.topology import Topology
from tests.unit.cluster.rendered import lumi, submit_config

PORO = Topology(tensor=2, pipeline=4, data=128)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2-00:00:00", 172_800),
        ("48:00:00", 172_800),
        ("03:00:00", 10_800),
        ("2-12", 216_000),
        ("1-02:30", 95_400),
        ("90", 5_400),
        ("90:30", 5_430),
        ("00:01:00", 60),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert parse_walltime(text) == seconds
    assert parse_walltime(format_walltime(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "2 days", "1:2:3:4", "-1", "1-", "forever"])
def test_what_is_no_time_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time limit"):
        parse_walltime(text)


@pytest.mark.parametrize(
    ("overrides", "nodes", "complaint"),
    [
        (
            ["cluster.train.partition=dev-g", "cluster.train.walltime=10:00:00"],
            4,
            "longer than dev-g allows (03:00:00)",
        ),
        (["cluster.train.partition=dev-g", "cluster.train.walltime=02:00:00"], 33, "33 nodes are more than .* (32)"),
        (["cluster.train.partition=small-g"], 5, "more than a job of small-g may have (4)"),
        ([], 1025, "more than a job of standard-g may have (1024)"),
        (["cluster.train.gpus_per_node=9"], 4, "cluster.train.gpus_per_node=9 is more"),
        (["cluster.train.cpus_per_task=8"], 4, "is 64 cores, and a job has 56"),
        (["cluster.train.partition=standard"], 4, "is more than a node of standard has (0)"),
        (["cluster.train.partition=mars-g"], 4, "is not one of this cluster's; use standard-g, small-g, dev-g,"),
        (["cluster.train.walltime=tomorrow"], 4, "cluster.train.walltime=tomorrow is not a time limit"),
        (["cluster.train.walltime=00:30:00"], 4, "leaves no time to train: 900 s pass"),
    ],
)
def test_what_lumi_would_refuse_is_refused_first(overrides: list[str], nodes: int, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_job(lumi(*overrides).cluster, "train", nodes=nodes)
    for part in complaint.split(".*"):
        assert part in str(refused.value)


def test_jobs_of_the_packaged_clusters_are_within_their_limits() -> None:
    for config in (lumi(), submit_config()):
        for kind in ("train", "tokenize", "export", "publish", "evaluate"):
            check_job(config.cluster, kind, nodes=1)


def test_poro_34b_takes_as_long_and_costs_as_much_as_it_did() -> None:
    config, cluster = load_config(["experiment=poro_34b"]), lumi().cluster
    speed = assumed_speed(config, cluster, world_size=1024)
    assert speed is not None
    assert speed.tokens_per_second == pytest.approx(174_378, rel=2e-4)
    cost = estimate(cluster, nodes=128, tokens_left=10**12, speed=speed)
    assert cost.training_seconds / 3600 == pytest.approx(1593, rel=1e-3)
    assert cost.node_hours * 4 == pytest.approx(815_600, rel=0.01)
    assert cost.jobs == 34  # of 47.5 hours each


def test_speed_is_the_runs_own_once_it_has_one(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert measured_speed(metrics) is None
    metrics.write_text("\n".join(f'{{"train/step": {n}, "perf/tokens_per_second": {100 * n}}}' for n in (1, 2, 9)))
    speed = measured_speed(metrics)
    assert speed is not None
    assert speed.tokens_per_second == 200
    assert "measured" in speed.origin
    metrics.write_text('{"train/step": 1}\nhalf a li')
    assert measured_speed(metrics) is None


def test_jobs_are_counted_without_their_start_and_their_saving() -> None:
    cluster = lumi(
        "cluster.train.walltime=02:00:00", "cluster.startup_seconds=1800", "cluster.signal_seconds=1800"
    ).cluster
    cost = estimate(cluster, nodes=4, tokens_left=7200 * 10, speed=Speed(10, ""))
    assert (cost.jobs, cost.job_seconds) == (2, 3600)
    assert cost.node_hours == 4 * (2 + 2 * 0.5)


def test_rank_map_of_poro_34b() -> None:
    check_rank_map(PORO, tasks_per_node=8)
    assert list(describe_rank_map(PORO, tasks_per_node=8, devices_per_module=2)) == [
        "node 0 has ranks 0 to 7: stage 0, replicas 0 to 3",
        "tensor ranks 0, 1 share a module, and so on",
        "a pipeline neighbour is 256 ranks away, 32 nodes",
    ]


@pytest.mark.parametrize(("tensor", "fits"), [(1, True), (2, True), (3, False), (8, True), (16, False)])
def test_tensor_groups_stay_on_a_node(tensor: int, fits: bool) -> None:
    topology = Topology(tensor=tensor, data=16)
    if fits:
        check_rank_map(topology, tasks_per_node=8)
    else:
        with pytest.raises(TopologyError, match=rf"parallel.tensor={tensor} does not divide the 8 .* Use 1, 2, 4, 8\."):
            check_rank_map(topology, tasks_per_node=8)


def test_tasks_that_were_dealt_in_turn_are_noticed() -> None:
    assert misplaced(["a", "a", "b", "b"], tasks_per_node=2) == []
    assert misplaced(["a", "b", "a", "b"], tasks_per_node=2) == [
        "ranks 0 to 1 should be one node and are a, b",
        "ranks 2 to 3 should be one node and are a, b",
    ]


# --- the command -----------------------------------------------------------------------------------------------------


def submit(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["submit", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


LUMI = ("cluster=lumi", "cluster.account=project_465000000")


def test_print_shows_all_that_would_run_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = submit(capsys, "experiment=poro_34b", *LUMI, "nodes=128", "--print")
    assert status == 0
    assert list(tmp_path.iterdir()) == []
    head, _, scripts = out.partition("\n\n")
    assert "1,024 = tensor 2 x pipeline 4 x data 128" in head
    assert "34, each with 1 d 23 h for steps" in head or "34, each with 2 d 00 h for steps" in head
    assert "GPU-hours as billed" in head
    assert scripts.startswith("#!/bin/bash -l\n#SBATCH --job-name=poro_34b-")
    assert f"#SBATCH --chdir={tmp_path}" in scripts
    for name in ("task.sh", "inside.sh", "site.sh"):
        assert f"--- {name} ---" in scripts


def test_nodes_follow_from_the_grid_where_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert "#SBATCH --nodes=128\n" in submit(capsys, "experiment=poro_34b", *LUMI, "--print")[1]
    status, _, error = submit(capsys, "experiment=smoke_cpu", *LUMI, "--print")
    assert status == 2
    assert "nodes has no value and parallel.data is null" in error


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("experiment=poro_34b", "cluster=lumi", "nodes=128"), "cluster.account has no value"),
        (("experiment=poro_34b", *LUMI, "nodes=64"), "is 1024 processes, but this run has 512"),
        (("experiment=poro_34b", *LUMI, "cluster.train.partition=small-g"), "128 nodes are more than a job of small-g"),
        (
            ("experiment=poro_34b", *LUMI, "parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1024"),
            "pipeline rank 0 needs about 2",
        ),
        (("experiment=poro_34b", "cluster=lumy"), "did you mean lumi?"),
        (("experiment=poro_34b", *LUMI, "--", "export"), "-- and a command belong to --job"),
        ((*LUMI, "--job", "export"), "--job export needs a command"),
        ((*LUMI, "--job", "export", "--array", "3", "--", "export", "x"), "--array 3 is for --job tokenize"),
        ((*LUMI, "model=poro_34b", "--job", "export", "--", "export", "x"), "takes keys of the cluster only"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    words: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = submit(capsys, *words, *(() if "--" in words else ("--print",)))
    assert status == 2
    assert complaint in error


def test_a_run_fits_where_its_plan_does(capsys: pytest.CaptureFixture[str]) -> None:
    """Between what tensors can have of a device and all of its memory, both say no."""
    words = ("experiment=poro_34b", "nodes=128", "engine.recompute=selective")
    counts = {True: "engine.recompute_blocks=[8,5,0,0]", False: "engine.recompute_blocks=[6,5,0,0]"}
    for fits, blocks in counts.items():
        assert main(["plan", *words, blocks, "hardware=lumi_g", "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)
        needed = max(part["total"] for part in planned["memory_bytes"])
        assert needed < 64e9
        assert planned["fits"] == fits
        status, out, error = submit(capsys, *words, blocks, *LUMI, "--print")
        assert status == (0 if fits else 2)
        assert ("where 58 GB are for tensors" in out) == fits
        assert ("tensors can have 58 GB of one of cluster.hardware=lumi_g" in error) != fits


def test_a_cluster_of_unknown_devices_is_not_asked_for_memory(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("experiment=poro_34b", *LUMI, "parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1024", "--print")
    status, out, _ = submit(capsys, *words, "cluster.hardware=null")
    assert status == 0
    assert "memory  " not in out.partition("\n\n")[0]


def test_a_command_is_quoted_as_it_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--job", "evaluate", "--print", "--", "generate", "runs/mine", "Suomi on $HOME")
    out = submit(capsys, *LUMI, *words)[1]
    assert out.endswith("\nporo generate runs/mine 'Suomi on $HOME'\n")
    assert "#SBATCH --partition=small-g\n" in out


def test_written_files_are_the_run_as_it_was_then(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    status, out, _ = submit(
        capsys, "experiment=smoke_cpu", "run.seed=7", "run.root=runs", "cluster=generic", "nodes=1", "--write"
    )
    assert status == 0
    job = tmp_path / "runs" / "smoke_cpu" / "job"
    assert f"sbatch {job / 'train.sbatch'}" in out
    config = load_config([], config_name="config", config_dirs=[job])
    assert config == load_config(["experiment=smoke_cpu", "run.seed=7", "run.root=runs"])
    assert "seed" not in (job / "train.sbatch").read_text()


def test_submitting_without_slurm_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    status, _, error = submit(capsys, "experiment=smoke_cpu", "run.root=runs", "cluster=generic", "nodes=1")
    assert status == 2
    assert "sbatch is not on PATH" in error


def fields_of(value: Any) -> set[str]:
    return set(vars(value))


def test_settings_of_jobs_are_keys_of_the_cluster() -> None:
    from megatron_poro.cluster.job_folder import JobSettings

    known = fields_of(lumi().cluster) | fields_of(lumi().cluster.train) | {"name", "working_folder"}
    assert set(JobSettings.__annotations__) <= known
