"""One thread per process and DeepSpeed's CPU path, set before anything imports torch; ranks are forked from here."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes, whose start takes seconds

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before the plugin that reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deals tests to workers by file, whose fixtures they share; those on a cluster, which mostly wait, begin first."""
    root = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(root)
        on_cluster = path.parts[0] == "slurm"
        item.add_marker(pytest.mark.xdist_group("slurm" if on_cluster else str(path)))
    items.sort(key=lambda item: item.path.parent != root / "slurm")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command sets up the package's logging for its process; here the next test shares the process."""
    logger = logging.getLogger("megatron_poro")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """A training ignores stop signals on its way out; the test runner goes on, and must be stoppable."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
