"""The run in advance: steps, samples, milestones, and a progress that only counts."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.config.load import load_config
from megatron_poro.schedule.milestones import Milestone, milestone_at, milestones
from megatron_poro.schedule.plan import plan_run
from megatron_poro.schedule.progress import Progress
from megatron_poro.units import parse_count

PORO = plan_run(load_config(["experiment=poro_34b"]))
SMOKE = load_config(["experiment=smoke_cpu"])


def test_poro_34b_is_238418_steps() -> None:
    assert PORO.total_samples == 488_281_250
    assert PORO.total_steps == 238_418
    assert PORO.tokens_per_step == 4_194_304
    assert PORO.microbatches == 16
    assert PORO.after(PORO.total_steps).tokens == 999_997_571_072


def test_poro_34b_has_ten_milestones() -> None:
    # n * 10^11 / 4,194,304 rounded down.
    assert [(milestone.label, milestone.step) for milestone in PORO.milestones] == [
        ("100B", 23_841),
        ("200B", 47_683),
        ("300B", 71_525),
        ("400B", 95_367),
        ("500B", 119_209),
        ("600B", 143_051),
        ("700B", 166_893),
        ("800B", 190_734),
        ("900B", 214_576),
        ("1000B", 238_418),
    ]


def test_smoke_has_a_milestone_half_way_and_at_the_end() -> None:
    plan = plan_run(SMOKE, world_size=4)
    assert plan.total_steps == 80
    assert plan.milestones == (Milestone("82k", 40, 81_920), Milestone("164k", 80, 163_840))


@pytest.mark.parametrize(("world_size", "microbatches"), [(None, 8), (4, 8), (8, 4), (16, 2)])
def test_more_replicas_take_fewer_microbatches_of_the_same_step(world_size: int | None, microbatches: int) -> None:
    plan = plan_run(SMOKE, world_size=world_size)
    assert plan.microbatches == microbatches
    assert dataclasses.replace(plan, microbatches=8) == plan_run(SMOKE)


def test_the_plan_of_a_step_depends_on_progress_alone() -> None:
    progress = PORO.after(1000)
    step = PORO.next_step(progress)
    assert (step.samples, step.tokens, step.microbatches) == (2048, 4_194_304, 16)
    assert f"{step.learning_rate:.4e}" == "6.2915e-05"
    assert PORO.next_step(Progress(1000, 1000 * 2048, 1000 * 4_194_304)) == step


def test_advancing_step_by_step_is_being_there() -> None:
    plan, progress = plan_run(SMOKE), Progress()
    for _ in range(80):
        assert not plan.is_finished(progress)
        progress = plan.advance(progress)
    assert progress == plan.after(80) == Progress(80, 1280, 163_840)
    assert plan.is_finished(progress)


def test_progress_cannot_be_changed_or_negative() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Progress().step = 1  # type: ignore[misc]
    with pytest.raises(AssertionError, match="progress cannot be negative"):
        Progress(0, -1, 0)


def test_progress_counts_what_a_step_consumed() -> None:
    assert Progress(3, 10, 100).advance(samples=2, tokens=20) == Progress(4, 12, 120)


@pytest.mark.parametrize(
    ("every", "total", "expected"),
    [
        (0, 100, [("100", 10)]),
        (30, 100, [("30", 3), ("60", 6), ("90", 9), ("100", 10)]),
        (50, 100, [("50", 5), ("100", 10)]),
        (35, 100, [("35", 3), ("70", 7), ("100", 10)]),  # 105 lies behind the end
        (100, 100, [("100", 10)]),
        (500, 100, [("100", 10)]),
        (50, 104, [("50", 5), ("104", 10)]),  # 100 is in the last step: one checkpoint has one label
        (10, 35, [("10", 1), ("20", 2), ("35", 3)]),
    ],
)
def test_a_milestone_is_the_last_step_within_its_label(every: int, total: int, expected: list[tuple[str, int]]) -> None:
    found = milestones(every_tokens=every, total_tokens=total, tokens_per_step=10)
    assert [(milestone.label, milestone.step) for milestone in found] == expected


@given(
    every=st.integers(1, 500), steps=st.integers(1, 300), tokens_per_step=st.integers(1, 50), rest=st.integers(0, 49)
)
def test_milestones_rise_and_never_pass_their_labels(every: int, steps: int, tokens_per_step: int, rest: int) -> None:
    every, total = max(every, tokens_per_step), steps * tokens_per_step + rest % tokens_per_step
    found = milestones(every_tokens=every, total_tokens=total, tokens_per_step=tokens_per_step)
    assert [milestone.step for milestone in found] == sorted({milestone.step for milestone in found})
    assert len({milestone.label for milestone in found}) == len(found)
    for milestone in found:
        assert milestone.tokens <= parse_count(milestone.label) < milestone.tokens + tokens_per_step
    assert found[-1].step == steps


def test_milestones_closer_than_steps_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="closer than steps"):
        milestones(every_tokens=9, total_tokens=100, tokens_per_step=10)


def test_a_step_knows_whether_it_is_a_milestone() -> None:
    assert milestone_at(95_367, PORO.milestones) == Milestone("400B", 95_367, 95_367 * 4_194_304)
    assert milestone_at(95_328, PORO.milestones) is None


def test_planning_does_not_import_torch() -> None:
    code = "import sys, megatron_poro.schedule.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("unit", "labels"),
    [("T", ["0.25T", "0.5T", "0.75T", "1T"]), ("B", ["250B", "500B", "750B", "1000B"]), ("auto", None)],
)
def test_labels_count_in_the_unit_that_is_asked_for(unit: str, labels: list[str] | None) -> None:
    plan = plan_run(load_config(["experiment=poro_34b", "export.every_tokens=250B", f"export.label_unit={unit}"]))
    assert [milestone.label for milestone in plan.milestones] == (labels or ["250B", "500B", "750B", "1000B"])
    assert [milestone.step for milestone in plan.milestones] == [59_604, 119_209, 178_813, 238_418]
