"""metrics.jsonl survives crashes, resumes and full disks; the console says what a person wants to know."""

import errno
import io
import json
import os
from pathlib import Path

import pytest

from megatron_poro.metrics import names
from megatron_poro.metrics.sinks import (
    JsonLinesSink,
    Number,
    PlainSink,
    ProgressSink,
    console_sink,
    keep_lines_up_to,
    split_metrics,
    summary,
)


def _line(step: int, **more: Number) -> dict[str, Number]:
    return {names.STEP.key: step, **more}


def _write(path: Path, steps: range, resumed_step: int = 0) -> None:
    sink = JsonLinesSink(path, resumed_step)
    for step in steps:
        sink.write(step, step * 10, _line(step))
    sink.close()


def _steps(path: Path) -> list[int]:
    return [json.loads(line)[names.STEP.key] for line in path.read_text().splitlines()]


def test_line_is_readable_as_soon_as_it_is_written(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "run" / "metrics.jsonl", 0)
    sink.write(1, 10, _line(1, loss=2.5))
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == {"train/step": 1, "loss": 2.5}
    sink.close()


def test_resume_removes_lines_after_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 8))
    _write(path, range(5, 11), resumed_step=4)
    assert _steps(path) == list(range(1, 11))


def test_new_run_starts_with_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 4))
    _write(path, range(1, 3), resumed_step=0)
    assert _steps(path) == [1, 2]


@pytest.mark.parametrize(
    "damage", [b'{"train/step": 4, "lo', b'{"train/step": 4}', b"\0\0\0\n", b"[]\n", b'{"a": 1}\n']
)
def test_half_written_or_damaged_line_is_repaired(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 4))
    with path.open("ab") as file:
        file.write(damage)
    _write(path, range(4, 6), resumed_step=4)
    assert _steps(path) == [1, 2, 3, 4, 5]


def test_rewound_file_goes_on_after_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLinesSink(path, 0)
    for step in range(1, 8):
        sink.write(step, step, _line(step))
    split_metrics(path, tmp_path / "tail.jsonl", 4)
    sink.rewound(4, 1)
    sink.write(5, 5, _line(5))
    sink.close()
    assert _steps(path) == [1, 2, 3, 4, 5]
    assert _steps(tmp_path / "tail.jsonl") == [5, 6, 7]


def test_split_can_be_repeated(tmp_path: Path) -> None:
    path, tail = tmp_path / "metrics.jsonl", tmp_path / "tail.jsonl"
    _write(path, range(1, 8))
    for _ in range(2):
        split_metrics(path, tail, 4)
        assert (_steps(path), _steps(tail)) == ([1, 2, 3, 4], [5, 6, 7])
    split_metrics(tmp_path / "none.jsonl", tmp_path / "no_tail.jsonl", 4)
    assert not (tmp_path / "no_tail.jsonl").exists()


def test_clean_file_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 4))
    inode = path.stat().st_ino
    keep_lines_up_to(path, 3)
    assert path.stat().st_ino == inode


def test_full_disk_does_not_raise_and_lines_follow_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLinesSink(path, 0)
    sink.write(1, 10, _line(1))
    real_write = os.write

    def full(file: int, data: bytes) -> int:
        real_write(file, data[:5])  # the device takes a few bytes, then is full
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        sink.write(2, 20, _line(2))
        sink.write(3, 30, _line(3))
    sink.write(4, 40, _line(4))
    sink.close()
    assert _steps(path) == [1, 2, 3, 4]


def test_file_is_forced_to_disk_at_most_every_few_seconds_and_at_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, synced = [0.0], []
    sink = JsonLinesSink(tmp_path / "metrics.jsonl", 0, clock=lambda: now[0])
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(now[0]))
    for second in range(12):
        now[0] = float(second)
        sink.write(second, second, _line(second))
    sink.close()
    assert synced == [5.0, 10.0, 11.0]


def test_value_that_json_cannot_hold_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLinesSink(path, 0)
    sink.write(1, 1, _line(1, a=float("nan"), b=float("inf"), c=1.5))
    sink.close()
    assert json.loads(path.read_text()) == {"train/step": 1, "a": None, "b": None, "c": 1.5}


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLinesSink(path, 0)
    sink.write(1, 1, _line(1, a=0.1 + 0.2))
    sink.close()
    assert json.loads(path.read_text())["a"] == 0.1 + 0.2


def test_summary_names_loss_rate_norm_speed_and_time_left() -> None:
    metrics: dict[str, Number] = {
        names.LOSS.key: 5.25,
        names.LEARNING_RATE.key: 1.5e-4,
        names.GRAD_NORM.key: 0.75,
        names.TOKENS_PER_SECOND.key: 174378.2,
        names.STEP_SECONDS.key: 2.0,
    }
    assert summary(metrics, 30) == "loss 5.2500  lr 0.00015  grad norm 0.750  174,378 tokens/s  ETA 1 min 00 s"
    assert summary({names.VALIDATION_LOSS.key: 4.0}, 1) == "validation loss 4.0000"


def test_console_without_a_terminal_writes_plain_lines() -> None:
    stream = io.StringIO()
    sink = console_sink(48, stream)
    assert isinstance(sink, PlainSink)
    sink.write(7, 70, {names.LOSS.key: 3.0})
    sink.close()
    assert stream.getvalue() == "step  7/48  loss 3.0000\n"


def test_console_says_that_the_run_went_back() -> None:
    stream = io.StringIO()
    console_sink(48, stream).rewound(6, 1)
    assert stream.getvalue() == "back to step 6\n"


def test_console_on_a_terminal_shows_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    sink = console_sink(48, stream)
    assert isinstance(sink, ProgressSink)
    sink.write(7, 70, {names.LOSS.key: 3.0})
    sink.rewound(5, 1)
    sink.close()
    assert "7/48" in stream.getvalue()
    assert "5/48" in stream.getvalue()
    assert "loss 3.0000" in stream.getvalue()
