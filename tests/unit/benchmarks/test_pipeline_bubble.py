"""The bubble that is measured is the one that is planned where passes take what the plan says and nothing else does."""

import time

import pytest

from benchmarks.pipeline_bubble import Case, PassClock, measured_step, planned_step
from megatron_poro.config.run import PipelineSchedule
from megatron_poro.parallel.step_clock import Part
from megatron_poro.parallel.topology import Topology
from megatron_poro.planning.pipeline import TimedWork, Timeline, simulate


def ideal(case: Case) -> Timeline:
    """The step whose passes take as long as they are drawn out, by a plan's clock."""
    return simulate(
        case.schedule,
        ranks=case.topology.pipeline,
        microbatches=case.microbatches,
        seconds=lambda kind, stage: next(
            case.drawn_seconds(work)
            for rank in range(case.topology.pipeline)
            for work in case.order(rank)
            if (work.kind, work.stage) == (kind, stage)
        ),
    )


@pytest.mark.parametrize("schedule", PipelineSchedule)
@pytest.mark.parametrize("last_stage", [1.0, 1.5])
@pytest.mark.parametrize("tensor", [1, 2])
def test_step_as_planned_has_the_planned_bubble(schedule: PipelineSchedule, last_stage: float, tensor: int) -> None:
    case = Case(Topology(tensor, 2), schedule, 8, last_stage)
    step = ideal(case)
    later = [
        [TimedWork(t.work, t.start + 1000, t.end + 1000) for t in rank] for rank in step.ranks for _ in "x" * tensor
    ]
    measured = measured_step(later)
    assert measured.seconds == pytest.approx(step.seconds)
    assert measured.bubble == pytest.approx(step.bubble)
    assert planned_step(case, measured).bubble == pytest.approx(step.bubble)


def test_waiting_that_no_plan_knows_is_measured_and_not_planned() -> None:
    case = Case(Topology(1, 2), PipelineSchedule.ONE_F_ONE_B, 8, 1.0)
    step = ideal(case)
    late = [[TimedWork(t.work, 2 * t.start, 2 * t.start + t.end - t.start) for t in rank] for rank in step.ranks]
    measured = measured_step(late)
    assert measured.bubble > step.bubble + 0.3
    assert planned_step(case, measured).bubble == pytest.approx(step.bubble)


def test_drawn_out_pass_takes_its_time_and_nothing_else_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    case = Case(Topology(1, 2), PipelineSchedule.ONE_F_ONE_B, 2, 1.5)
    clock = PassClock(case, 1)
    for part in (Part.LOADING, Part.COMPUTE, Part.PIPELINE, Part.COMPUTE):
        with clock.running(part):
            now[0] += 0.01
            with clock.running(Part.TENSOR):
                now[0] += 0.01
    assert [timed.work for timed in clock.passes] == case.order(1)[:2]
    assert [timed.end - timed.start for timed in clock.passes] == pytest.approx([0.09, 0.18])
