"""One simulated cluster for all tests of this folder. Without root or the packages they are skipped and say so."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.toy import ToyCorpora
from tests.slurm.chained_run import ONE_NODE, REPLICAS, TWO_NODES, ChainedRun
from tests.support.slurm.simulation import SimulatedSlurm, reason_not_to_start, simulated_slurm

NODES = 3


@pytest.fixture(scope="session")
def cluster() -> Iterator[SimulatedSlurm]:
    reason = reason_not_to_start()
    if reason is not None:
        pytest.skip(reason)
    with (
        tempfile.TemporaryDirectory(prefix="poro-slurm-", ignore_cleanup_errors=True) as folder,
        simulated_slurm(Path(folder), nodes=NODES) as slurm,
    ):
        yield slurm


@pytest.fixture
def slurm(cluster: SimulatedSlurm) -> Iterator[SimulatedSlurm]:
    """The cluster, with nothing on it, before and after."""
    cluster.clear()
    yield cluster
    cluster.clear()


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> ToyCorpora:
    return ToyCorpora.make(tmp_path_factory.mktemp("corpora"))


@pytest.fixture
def chained(slurm: SimulatedSlurm, corpora: ToyCorpora, tmp_path: Path) -> Callable[..., ChainedRun]:
    """Makes a run of this test."""

    def make(**values: Any) -> ChainedRun:
        return ChainedRun(slurm, corpora, tmp_path, **values)

    return make


@pytest.fixture(scope="session")
def undisturbed(
    cluster: SimulatedSlurm, corpora: ToyCorpora, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, float]:
    """The last loss of runs that nothing happens to: on one node, and on two."""
    losses = {}
    for name, values in {
        "one": {"job": ONE_NODE},
        "two": {"job": TWO_NODES, "changes": REPLICAS},
    }.items():
        cluster.clear()
        run = ChainedRun(cluster, corpora, tmp_path_factory.mktemp(name), step_seconds=0, **values)
        run.submit()
        run.wait_until_done()
        run.assert_complete()
        losses[name] = run.loss()
    return losses
