"""Requests from outside are noted, agreed on by all processes, and carried out once."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_poro.errors import ConfigError
from megatron_poro.parallel.agreement import World
from megatron_poro.train.control import STOP_SIGNALS, STOPPING, Control, ControlFiles, Notice, StopRequest
from tests.support.deaths import in_child
from tests.support.ranks import run_ranks

NOTHING = Notice(0)


def alone(bits: int) -> int:
    """The merge of a single process."""
    return bits


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_noted_and_does_not_kill(number: signal.Signals) -> None:
    with StopRequest() as request:
        assert request.received is None
        os.kill(os.getpid(), number)
        assert request.received == number


def test_second_signal_changes_nothing() -> None:
    with StopRequest() as request:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert request.received == signal.SIGUSR1


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.parametrize(("until_exit", "status"), [(True, 0), (False, -signal.SIGTERM)])
def test_signal_while_a_process_ends_does_not_replace_its_exit_code(until_exit: bool, status: int) -> None:
    def leave() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a command that ran here before has left its own
        with StopRequest(until_exit=until_exit):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    assert in_child(leave) == status


# --- control files ---------------------------------------------------------------------------------------------------


def control(folder: Path, stop: StopRequest | None = None) -> Control:
    files = ControlFiles(folder)
    files.prepare()
    return Control(stop or StopRequest(), files, alone)


@pytest.mark.parametrize(("name", "notice"), [("stop", Notice.STOP_FILE), ("save", Notice.SAVE_FILE)])
def test_file_is_a_request_until_it_is_obeyed(tmp_path: Path, name: str, notice: Notice) -> None:
    asked = control(tmp_path / "control")
    assert asked.agree() == NOTHING
    (tmp_path / "control" / name).touch()
    assert [asked.agree(), asked.agree()] == [notice, notice]
    asked.obeyed(notice)
    assert asked.agree() == NOTHING
    assert list((tmp_path / "control").iterdir()) == []


def test_obeying_one_request_leaves_the_others(tmp_path: Path) -> None:
    asked = control(tmp_path)
    for name in (ControlFiles.STOP, ControlFiles.SAVE, ControlFiles.DUMP_STACKS):
        (tmp_path / name).touch()
    assert asked.agree() == Notice.STOP_FILE | Notice.SAVE_FILE
    asked.obeyed(Notice.SAVE_FILE)
    assert asked.agree() == Notice.STOP_FILE
    asked.obeyed(STOPPING)
    assert [path.name for path in tmp_path.iterdir()] == [ControlFiles.DUMP_STACKS]


def test_file_that_cannot_be_removed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "save").mkdir()
    control(tmp_path).obeyed(Notice.SAVE_FILE)
    assert "cannot be removed" in caplog.text


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "control").touch()
    with pytest.raises(ConfigError, match=r"control cannot be made"):
        ControlFiles(tmp_path / "control").prepare()


def test_process_without_files_asks_nobody(tmp_path: Path) -> None:
    asked = Control(StopRequest(), None, alone)
    asked.obeyed(STOPPING)
    assert asked.agree() == NOTHING


# --- agreement -------------------------------------------------------------------------------------------------------


def test_what_is_reported_holds_for_one_boundary() -> None:
    asked, said = Control(StopRequest(), None, alone), [Notice.WRITING, NOTHING]
    asked.report(lambda: said.pop(0))
    asked.report(lambda: Notice.LEASE_LOST)
    lost = Notice.LEASE_LOST
    assert [asked.agree(), asked.agree()] == [lost | Notice.WRITING, lost]


def _notices(folder: Path) -> list[Notice]:
    """Boundaries of a process among three: each knows something else, and one gets a signal after the first."""
    world = World.default()
    files = ControlFiles(folder) if world.is_first else None
    mine: Callable[[], Notice] = lambda: Notice.WRITING if world.rank == 1 else NOTHING  # noqa: E731
    with StopRequest() as stop:
        asked = Control(stop, files, world.union)
        asked.report(mine)
        first = asked.agree()
        if world.rank == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return [first, asked.agree(), asked.agree()]


def test_what_one_process_knows_all_know_at_the_same_boundary(tmp_path: Path) -> None:
    (tmp_path / "save").touch()
    first = Notice.SAVE_FILE | Notice.WRITING
    assert (
        run_ranks(_notices, tmp_path, world=3) == [[first, first | Notice.STOP_SIGNAL, first | Notice.STOP_SIGNAL]] * 3
    )
