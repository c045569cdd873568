"""``poro publish`` without a network: its words, its watch, and what it prints."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_poro import locks
from megatron_poro.cli import publish
from megatron_poro.cli.main import main
from megatron_poro.errors import HubUnavailableError
from tests.unit.hub.memory_remote import MemoryRemote
from tests.unit.hub.run_folder import MILESTONES, make_export, make_run


class Enough(BaseException):
    """The watch has looked often enough."""


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> MemoryRemote:
    remote = MemoryRemote()
    monkeypatch.setattr(publish, "HubRemote", lambda *_, **__: remote)
    monkeypatch.setattr(publish, "configure", lambda: None)
    return remote


def between_looks(monkeypatch: pytest.MonkeyPatch, *happens: Callable[[], object]) -> None:
    """What happens while the watch sleeps, in order; then it is enough."""
    waiting = list(happens)

    def sleep(seconds: float) -> None:
        assert seconds == 7.0
        if not waiting:
            raise Enough
        waiting.pop(0)()

    monkeypatch.setattr(time, "sleep", sleep)


def words(run: Path, *more: str) -> list[str]:
    return ["publish", str(run), "--repo", "poro/tiny", *more]


def test_a_watch_ends_after_the_last_milestone(
    remote: MemoryRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", ["2k"])
    between_looks(
        monkeypatch,
        lambda: make_export(run, "4k"),
        lambda: [make_export(run, label) for label in ("6k", "6400")],
    )
    assert main(words(run, "--watch", "--poll", "7")) == 0
    assert remote.heads.keys() == {"main", *MILESTONES}
    done = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert done == [
        "create the repository",
        "upload and verify 2k",
        "point main to 2k",
        "upload and verify 4k",
        "point main to 4k",
        "upload and verify 6k",
        "upload and verify 6400",
        "point main to 6400",
        f"poro/tiny holds all milestones of {run}",
    ]


def test_a_watch_asks_the_hub_only_when_something_is_new(
    remote: MemoryRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", ["2k"])
    calls: list[int] = []
    evaluation = run / "evaluations" / "2k.json"
    evaluation.parent.mkdir()

    def look() -> None:
        calls.append(remote.calls)

    between_looks(monkeypatch, look, look, lambda: evaluation.write_text('{"results": []}'), look)
    with pytest.raises(Enough):
        main(words(run, "--watch", "--poll", "7"))
    assert calls[0] == calls[1] < calls[2]


def test_a_watch_waits_for_a_hub_that_is_away_and_for_a_run_that_has_only_begun(
    remote: MemoryRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()

    def away(number: int) -> None:
        raise HubUnavailableError("no network")

    def back() -> None:
        remote.before = lambda number: None

    remote.before = away
    begun = make_run(tmp_path / "elsewhere")
    between_looks(monkeypatch, lambda: shutil.copytree(begun, run, dirs_exist_ok=True), back)
    assert main(words(run, "--watch", "--poll", "7")) == 0
    assert remote.heads.keys() == {"main", *MILESTONES}


def test_a_run_without_exports_is_told_how_to_get_them(
    remote: MemoryRemote, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", [])
    assert main(words(run)) == 2
    assert f"has no exported milestone: make them with `poro export {run} --milestones`" in capsys.readouterr().err
    assert not remote.exists


@pytest.mark.parametrize("text", ["latest", "100B;200B", ",", "step_00000010"])
def test_milestones_must_be_called_like_milestones(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(words(tmp_path, "--milestones", text))
    assert leaving.value.code == 2
    assert "is neither all nor milestones such as 100B,200B" in capsys.readouterr().err


def test_all_milestones_can_be_asked_for_by_a_word(remote: MemoryRemote, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["2k", "4k"])
    assert main(words(run, "--milestones", "all", "--private")) == 0
    assert remote.heads.keys() == {"main", "2k", "4k"}


def test_a_folder_that_cannot_be_written_to_can_be_published(
    remote: MemoryRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(locks, "hold", refused)
    assert main(words(make_run(tmp_path / "run", ["2k"]))) == 0
    assert "cannot be written to (Permission denied)" in caplog.text
