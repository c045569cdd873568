"""Weights & Biases can fail, hang or be absent: training goes on and is told once."""

import builtins
import logging
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.metrics import names, wandb_sink
from megatron_poro.metrics.wandb_sink import WandbMode, WandbRun, WandbSink


class _Session:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.finished = False

    def define_metric(self, *arguments: object, **options: object) -> None: ...

    def log(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """Texts the sink logs."""
    texts: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    handler, logger = Collect(), logging.getLogger(wandb_sink.__name__)
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)


def _fake_wandb(monkeypatch: pytest.MonkeyPatch, **members: object) -> list[dict[str, Any]]:
    """Puts a stand-in for the wandb package in place; returns the arguments of each init."""
    calls: list[dict[str, Any]] = []
    module = types.ModuleType("wandb")
    session = members.pop("session", _Session())

    def init(**options: Any) -> object:
        calls.append(options)
        return session

    module.init = init  # type: ignore[attr-defined]
    module.Settings = lambda **options: options  # type: ignore[attr-defined]
    for name, member in members.items():
        setattr(module, name, member)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def _run(folder: Path, mode: WandbMode = "offline", lineage: int = 0) -> WandbRun:
    return WandbRun(
        project="poro", name="smoke", run_id="a1b2", lineage=lineage, folder=folder, mode=mode, config={"a": 1}
    )


def _log_some(sink: WandbSink, steps: int = 3) -> None:
    for step in range(1, steps + 1):
        sink.write(step, step * 10, {names.STEP.key: step})
    sink.close()


def test_lines_arrive_in_order_and_the_run_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = _Session()
    calls = _fake_wandb(monkeypatch, session=session)
    _log_some(WandbSink(_run(tmp_path)))
    assert [line[names.STEP.key] for line in session.lines] == [1, 2, 3]
    assert session.finished
    assert calls[0]["mode"] == "offline"
    assert calls[0]["project"] == "poro"
    assert calls[0]["config"] == {"a": 1}


def test_resumed_run_has_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _fake_wandb(monkeypatch)
    for _ in range(2):
        _log_some(WandbSink(_run(tmp_path, "online")))
    assert [call["id"] for call in calls] == ["a1b2", "a1b2"]
    assert calls[0]["resume"] == "allow"


def test_rewound_run_goes_on_as_the_next_of_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = _Session()
    calls = _fake_wandb(monkeypatch, session=session)
    sink = WandbSink(_run(tmp_path, "online"))
    sink.write(7, 70, {names.STEP.key: 7})
    sink.rewound(4, 1)
    sink.write(5, 50, {names.STEP.key: 5})
    sink.close()
    _log_some(WandbSink(_run(tmp_path, "online", lineage=1)), steps=1)
    assert [call["id"] for call in calls] == ["a1b2", "a1b2-1", "a1b2-1"]
    assert [call["name"] for call in calls] == ["smoke", "smoke (rewind 1)", "smoke (rewind 1)"]
    assert {call["group"] for call in calls} == {"a1b2"}
    assert [line[names.STEP.key] for line in session.lines] == [7, 5, 1]


def test_failing_init_is_reported_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    def broken(**options: object) -> None:
        raise RuntimeError("no route to host")

    _fake_wandb(monkeypatch, init=broken)
    _log_some(WandbSink(_run(tmp_path)), steps=50)
    assert len(warnings) == 1
    assert "no route to host" in warnings[0]


def test_failing_log_is_reported_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    class Broken(_Session):
        def log(self, line: dict[str, Any]) -> None:
            raise SystemExit("quota")

    _fake_wandb(monkeypatch, session=Broken())
    _log_some(WandbSink(_run(tmp_path)), steps=50)
    assert len(warnings) == 1
    assert "quota" in warnings[0]


def test_missing_package_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    real_import = builtins.__import__

    def without_wandb(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_wandb)
    _log_some(WandbSink(_run(tmp_path)))
    assert len(warnings) == 1
    assert "wandb" in warnings[0]


def test_hanging_wandb_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    release = threading.Event()
    _fake_wandb(monkeypatch, init=lambda **options: release.wait(60) and _Session())
    monkeypatch.setattr(wandb_sink, "_QUEUE_LINES", 10)
    sink = WandbSink(_run(tmp_path), close_seconds=0.01)
    _log_some(sink, steps=1000)  # a hundred times what the queue holds
    release.set()
    assert len(warnings) == 2
    assert "dropped" in warnings[0]
    assert "not finished" in warnings[1]


def test_real_wandb_works_offline(tmp_path: Path, warnings: list[str]) -> None:
    _log_some(WandbSink(_run(tmp_path)))
    written = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(written) == 1
    assert "a1b2" in written[0].name
    assert written[0].stat().st_size > 0
    assert warnings == []


def test_package_is_imported_by_this_file_only() -> None:
    root = Path(wandb_sink.__file__).parents[1]
    importing = [p.name for p in root.rglob("*.py") if "import wandb" in p.read_text()]
    assert importing == ["wandb_sink.py"]
