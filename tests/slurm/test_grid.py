"""The real grid in the small: two nodes of four tasks, tensor x pipeline x data, then the export. On a real Slurm."""

import json
from collections.abc import Callable

from tests.slurm.chained_run import ChainedRun


def test_two_nodes_of_four_tasks_train_and_export(chained: Callable[..., ChainedRun]) -> None:
    grid = ("engine=deepspeed", "engine.microbatch_samples=1", "parallel.tensor=2", "parallel.pipeline=2")
    run = chained(job={"nodes": 2, "tasks_per_node": 4}, changes=grid, step_seconds=0, steps=12)
    run.submit()
    run.wait_until_done()
    run.assert_complete()
    run.poro("submit", *run.on_cluster, "--job", "export", "--", "export", str(run.run_folder), "--milestones")
    run.wait_until_done()
    (report,) = (run.run_folder / "exports").glob("*/export_report.json")
    assert json.loads(report.read_text())["parity"]["met"]
