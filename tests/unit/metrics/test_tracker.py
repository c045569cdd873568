"""The tracker: one line per interval, exact reductions, no waiting in the step."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from megatron_poro.metrics import names
from megatron_poro.metrics.sinks import Number
from megatron_poro.metrics.throughput import SpeedOfRun, StepFlops
from megatron_poro.metrics.tracker import Position, Tracker

_SPEED = SpeedOfRun(StepFlops(model=6e12, hardware=8e12), tokens_per_step=100, devices=2, peak_tflops=10.0)


class _Recorder:
    def __init__(self) -> None:
        self.lines: list[dict[str, Number]] = []
        self.went_back: list[tuple[int, int]] = []
        self.closed = False

    def write(self, step: int, tokens: int, metrics: Mapping[str, Number]) -> None:
        assert (step, tokens) == (metrics[names.STEP.key], metrics[names.TOKENS.key])
        self.lines.append(dict(metrics))

    def rewound(self, step: int, lineage: int) -> None:
        self.went_back.append((step, lineage))

    def close(self) -> None:
        self.closed = True


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _tracker(recorder: _Recorder | None, clock: _Clock | None = None) -> Tracker:
    return Tracker(
        [recorder] if recorder else [],
        sources=["finnish", "code"],
        validation_sources=["finnish"],
        speed=_SPEED,
        clock=clock or _Clock(),
    )


def _step(tracker: Tracker, loss: float, weights: tuple[float, float], *, norm: float = 1.0) -> None:
    sums = torch.tensor([loss * weights[0], loss * weights[1]])
    tracker.record_step(
        loss=torch.tensor(loss),
        grad_norm=torch.tensor(norm),
        source_loss_sums=sums,
        source_weights=torch.tensor(weights),
        learning_rate=1e-3,
    )


def test_line_of_one_step_holds_the_exact_loss() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = _tracker(recorder, clock)
    loss = 2.0 / 3.0
    _step(tracker, loss, (77.0, 23.0))
    clock.now = 1.0
    tracker.flush(Position(step=1, samples=4, tokens=100))
    assert recorder.lines[0][names.LOSS.key] == torch.tensor(loss).item()


def test_tracker_of_a_run_that_went_back_forgets_what_it_has_not_written() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = _tracker(recorder, clock)
    _step(tracker, 4.0, (10.0, 20.0))
    tracker.rewound(Position(step=2, samples=8, tokens=200, lineage=1))
    assert recorder.went_back == [(2, 1)]
    tracker.flush(Position(step=2, samples=8, tokens=200, lineage=1))
    assert recorder.lines == []
    _step(tracker, 3.0, (10.0, 20.0))
    clock.now = 1.0
    tracker.flush(Position(step=3, samples=12, tokens=300, lineage=1))
    assert [(line[names.LINEAGE.key], line[names.LOSS.key]) for line in recorder.lines] == [(1, 3.0)]


def test_loss_of_an_interval_is_the_mean_over_its_tokens() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = _tracker(recorder, clock)
    _step(tracker, 4.0, (10.0, 20.0), norm=1.0)
    _step(tracker, 2.0, (90.0, 0.0), norm=3.0)
    clock.now = 4.0
    tracker.flush(Position(step=2, samples=8, tokens=200))
    (line,) = recorder.lines
    assert line[names.LOSS.key] == pytest.approx((4 * 30 + 2 * 90) / 120)
    assert line[names.GRAD_NORM.key] == 2.0
    assert line[names.SOURCE_LOSS.of("finnish")] == pytest.approx((4 * 10 + 2 * 90) / 100)
    assert line[names.SOURCE_LOSS.of("code")] == pytest.approx(4.0)
    assert (line[names.SOURCE_TOKENS.of("finnish")], line[names.SOURCE_TOKENS.of("code")]) == (100, 20)


def test_source_without_tokens_has_no_loss() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = _tracker(recorder, clock)
    _step(tracker, 1.0, (10.0, 0.0))
    clock.now = 1.0
    tracker.flush(Position(1, 4, 100))
    assert names.SOURCE_LOSS.of("code") not in recorder.lines[0]
    assert recorder.lines[0][names.SOURCE_TOKENS.of("code")] == 0


def test_speed_counts_step_time_and_leaves_out_validation_and_checkpoints() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = _tracker(recorder, clock)
    _step(tracker, 1.0, (1.0, 1.0))
    with tracker.data_wait():
        clock.now = 0.6
    _step(tracker, 1.0, (1.0, 1.0))
    clock.now = 4.0
    with tracker.outside_step():
        clock.now = 1000.0
    tracker.flush(Position(2, 8, 200))
    line = recorder.lines[0]
    assert line[names.STEP_SECONDS.key] == 2.0
    assert line[names.TOKENS_PER_SECOND.key] == 50.0
    assert line[names.MODEL_TFLOPS.key] == pytest.approx(1.5)
    assert line[names.HARDWARE_TFLOPS.key] == pytest.approx(2.0)
    assert line[names.MFU.key] == pytest.approx(0.15)
    assert line[names.DATA_WAIT_SECONDS.key] == pytest.approx(0.3)


def test_time_after_a_line_belongs_to_the_next_one() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = _tracker(recorder, clock)
    for step in (1, 2):
        _step(tracker, 1.0, (1.0, 1.0))
        clock.now += 3.0
        tracker.flush(Position(step, 4 * step, 100 * step))
    assert [line[names.STEP_SECONDS.key] for line in recorder.lines] == [3.0, 3.0]


def test_validation_joins_the_line_of_its_step() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = _tracker(recorder, clock)
    _step(tracker, 1.0, (1.0, 1.0))
    tracker.record_validation(torch.tensor([30.0]), torch.tensor([10.0]))
    clock.now = 1.0
    tracker.flush(Position(1, 4, 100))
    assert recorder.lines[0][names.VALIDATION_LOSS.key] == 3.0
    assert recorder.lines[0][names.SOURCE_VALIDATION_LOSS.of("finnish")] == 3.0


def test_engine_may_count_more_sources_than_a_mixture_has() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = _tracker(recorder, clock)
    tracker.record_step(
        loss=torch.tensor(1.0),
        grad_norm=torch.tensor(1.0),
        source_loss_sums=torch.tensor([2.0, 3.0, 0.0]),
        source_weights=torch.tensor([1.0, 1.0, 0.0]),
        learning_rate=0.1,
    )
    tracker.record_validation(torch.tensor([30.0, 0.0, 0.0]), torch.tensor([10.0, 0.0, 0.0]))
    clock.now = 1.0
    tracker.flush(Position(1, 4, 100))
    line = recorder.lines[0]
    assert line[names.SOURCE_LOSS.of("finnish")] == 2.0
    assert line[names.SOURCE_LOSS.of("code")] == 3.0
    assert line[names.VALIDATION_LOSS.key] == 3.0


def test_flush_without_records_writes_nothing() -> None:
    recorder = _Recorder()
    tracker = _tracker(recorder)
    tracker.flush(Position(1, 4, 100))
    assert recorder.lines == []


def test_recording_copies_the_numbers() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = _tracker(recorder, clock)
    loss = torch.tensor(5.0)
    tracker.record_step(
        loss=loss,
        grad_norm=torch.tensor(1.0),
        source_loss_sums=torch.zeros(2),
        source_weights=torch.ones(2),
        learning_rate=0.1,
    )
    loss.fill_(7.0)  # an engine reuses its buffer
    clock.now = 1.0
    tracker.flush(Position(1, 4, 100))
    assert recorder.lines[0][names.LOSS.key] == 5.0


def test_recording_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    for method in ("item", "cpu", "tolist", "numpy", "__float__", "__bool__"):
        original = getattr(Tensor, method)

        def spy(self: Tensor, *arguments: object, _name: str = method, _original=original, **options: object):  # type: ignore[no-untyped-def]
            waits.append(_name)
            return _original(self, *arguments, **options)

        monkeypatch.setattr(Tensor, method, spy)
    clock = _Clock()
    tracker = _tracker(_Recorder(), clock)
    for _ in range(5):
        _step(tracker, 1.0, (1.0, 1.0))
    assert waits == []
    clock.now = 1.0
    tracker.flush(Position(5, 20, 500))
    assert waits.count("cpu") == 1


def test_process_without_sinks_holds_no_records() -> None:
    tracker = _tracker(None)
    _step(tracker, 1.0, (1.0, 1.0))
    assert tracker._steps == []


def test_close_closes_every_sink() -> None:
    recorder = _Recorder()
    _tracker(recorder).close()
    assert recorder.closed


def test_every_key_a_line_can_hold_is_in_the_table() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = Tracker(
        [recorder],
        sources=["a"],
        validation_sources=["a"],
        speed=_SPEED,
        consumption=lambda samples: [(10 * samples, 0.5)],
        clock=clock,
        peak_memory=lambda: 7,
    )
    tracker.record_step(
        loss=torch.tensor(1.0),
        grad_norm=torch.tensor(1.0),
        source_loss_sums=torch.ones(1),
        source_weights=torch.ones(1),
        learning_rate=0.1,
    )
    tracker.record_validation(torch.ones(1), torch.ones(1))
    tracker.record_slowest_process(1.2)
    clock.now = 1.0
    tracker.flush(Position(1, 1, 1))
    expected = {m.of("a") if "<source>" in m.key else m.key for m in names.ALL_METRICS}
    assert set(recorder.lines[0]) == expected
    assert recorder.lines[0][names.SOURCE_CONSUMED_TOKENS.of("a")] == 10
    assert recorder.lines[0][names.SOURCE_EPOCHS.of("a")] == 0.5


def test_skipped_steps_are_counted_and_their_loss_is_not() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = _tracker(recorder, clock)
    _step(tracker, 2.0, (10, 10))
    tracker.record_skipped(computed=True)
    tracker.record_skipped(computed=False)
    _step(tracker, 4.0, (10, 10))
    clock.now = 6.0
    tracker.flush(Position(4, 4, 4))
    tracker.record_skipped(computed=True)
    tracker.flush(Position(5, 5, 5))
    mixed, alone = recorder.lines
    assert mixed[names.LOSS.key] == 3.0
    assert mixed[names.SKIPPED_STEPS.key] == 2
    assert mixed[names.STEP_SECONDS.key] == 2.0, "a step that was refused took its time, one never begun did not"
    assert alone[names.SKIPPED_STEPS.key] == 1
    assert names.LOSS.key not in alone
    assert names.STEP_SECONDS.key not in alone


def test_slowest_process_of_an_interval_is_kept() -> None:
    recorder, clock = _Recorder(), _Clock()
    tracker = _tracker(recorder, clock)
    for ratio in (1.05, 1.3, 1.1):
        tracker.record_slowest_process(ratio)
    _step(tracker, 2.0, (10, 10))
    clock.now = 1.0
    tracker.flush(Position(1, 1, 1))
    _step(tracker, 2.0, (10, 10))
    clock.now = 2.0
    tracker.flush(Position(2, 2, 2))
    assert recorder.lines[0][names.SLOWEST_PROCESS.key] == 1.3
    assert names.SLOWEST_PROCESS.key not in recorder.lines[1]
