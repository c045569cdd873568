"""Who writes log lines, and how they look."""

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from megatron_poro import logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger("megatron_poro")
    before = (root.handlers, root.propagate, root.level)
    yield
    root.handlers, root.propagate = before[0], before[1]
    root.setLevel(before[2])


def written(rank: int, **options: bool) -> list[str]:
    stream = io.StringIO()
    logs.configure(rank=rank, stream=stream, **options)
    logger = logs.get_logger("megatron_poro.train.loop")
    logger.debug("detail")
    logger.info("step %d", 7)
    logger.error("disk full")
    return stream.getvalue().splitlines()


def test_rank_0_writes_everything_in_one_format() -> None:
    first, second = written(0)
    assert first[20:] == "INFO    rank 0 megatron_poro.train.loop: step 7"
    assert second[20:] == "ERROR   rank 0 megatron_poro.train.loop: disk full"


def test_another_rank_writes_errors_only() -> None:
    (line,) = written(3)
    assert line.endswith("rank 3 megatron_poro.train.loop: disk full")


def test_all_ranks_write_when_asked() -> None:
    assert len(written(3, all_ranks=True)) == 2


def test_a_bar_that_takes_over_stderr_gets_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    logs.configure(rank=0)
    above_the_bar = io.StringIO()
    monkeypatch.setattr(sys, "stderr", above_the_bar)
    logs.get_logger("megatron_poro.train.loop").info("saved")
    assert above_the_bar.getvalue().endswith("saved\n")


def test_a_second_call_replaces_the_first() -> None:
    written(0)
    assert len(written(0)) == 2


def test_nothing_reaches_the_root_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        written(0)
    assert caplog.records == []


def test_a_door_run_as_main_belongs_to_the_package() -> None:
    assert logs.get_logger("__main__").name == "megatron_poro.__main__"
    assert logs.get_logger("megatron_poro").name == "megatron_poro"


@pytest.mark.parametrize(
    ("environment", "rank"),
    [({}, 0), ({"RANK": "5"}, 5), ({"SLURM_PROCID": "6"}, 6), ({"RANK": "5", "SLURM_PROCID": "6"}, 5)],
)
def test_the_rank_is_the_launchers(environment: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert logs.rank_from_environment() == rank


def test_logging_does_not_import_torch() -> None:
    code = "import megatron_poro.logs, megatron_poro.units, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
