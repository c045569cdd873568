"""The simulated pipeline is the one that runs, and its clock is right where a formula is known."""

from typing import Any

import pytest
from deepspeed.runtime.pipe import schedule as deepspeed_schedule

from megatron_poro.config.run import PipelineSchedule
from megatron_poro.engine.deferring_schedule import DeferringSchedule, WeightGradientPass
from megatron_poro.parallel.schedules import Pass, Work, work_order
from megatron_poro.planning.pipeline import most_held, simulate, step_length

ONE, DUAL = PipelineSchedule.ONE_F_ONE_B, PipelineSchedule.DUALPIPEV


def uniform(kind: Pass, stage: int) -> float:
    return 1.0 if kind is Pass.FORWARD else 2.0


SHAPES = [(1, 1), (1, 3), (2, 1), (2, 5), (4, 2), (4, 16), (5, 7)]


def one_f_one_b(ranks: int, rank: int, microbatches: int, deferred: int | None) -> deepspeed_schedule.TrainSchedule:
    """What an engine's rank runs."""
    if deferred is None:
        return deepspeed_schedule.TrainSchedule(microbatches, ranks, rank)
    return DeferringSchedule(microbatches, ranks, rank, deferred=deferred)


@pytest.mark.parametrize(
    ("ranks", "microbatches", "deferred"),
    [(*shape, None) for shape in SHAPES]
    + [(ranks, microbatches, waiting) for ranks, microbatches in SHAPES for waiting in range(ranks) if ranks > 1],
)
def test_1f1b_is_the_order_that_runs(ranks: int, microbatches: int, deferred: int | None) -> None:
    for rank in range(ranks):
        done = dict.fromkeys(Pass, 0)
        expected = []
        for step in one_f_one_b(ranks, rank, microbatches, deferred).steps():
            for instruction in step:
                kind = _kind(instruction)
                if kind is not None:
                    expected.append(Work(kind, rank, done[kind]))
                    done[kind] += 1
        found = work_order(ONE, ranks=ranks, rank=rank, microbatches=microbatches, deferred=deferred)
        assert list(found) == expected


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 1), (4, 2), (4, 16)])
def test_passes_that_are_put_off_use_deepspeeds_buffers_and_end_before_gradients_are_reduced(
    ranks: int, microbatches: int
) -> None:
    for rank in range(ranks):
        theirs = _buffers(deepspeed_schedule.TrainSchedule(microbatches, ranks, rank))
        for deferred in range(ranks):
            ours = DeferringSchedule(microbatches, ranks, rank, deferred=deferred)
            assert _buffers(ours) == theirs
            names = [type(instruction).__name__ for step in ours.steps() for instruction in step]
            assert names.count("WeightGradientPass") == microbatches
            assert names[-3:] == ["ReduceTiedGrads", "ReduceGrads", "OptimizerStep"]
            assert names.count("TakeActivation") == names.count("PostGradient") == microbatches * (rank > 0)
            assert names.count("TakeGradient") == names.count("PostActivation") == microbatches * (rank < ranks - 1)


def _buffers(steps: deepspeed_schedule.TrainSchedule) -> list[tuple[str, int]]:
    """Of passes, and of what is loaded for them."""
    passes = (deepspeed_schedule.LoadMicroBatch, deepspeed_schedule.ForwardPass, deepspeed_schedule.BackwardPass)
    return [(type(one).__name__, one.buffer_id) for step in steps.steps() for one in step if isinstance(one, passes)]


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (2, 7), (3, 6), (4, 16)])
def test_dualpipev_is_deepspeeds_order(ranks: int, microbatches: int) -> None:
    for rank in range(ranks):
        theirs = deepspeed_schedule.DualPipeVSchedule(microbatches, ranks, rank)
        expected = []
        for instruction in (instruction for step in theirs.steps() for instruction in step):
            kind = _kind(instruction)
            if kind is not None:
                stage = rank if instruction.phase == 0 else 2 * ranks - 1 - rank
                expected.append(Work(kind, stage, instruction.buffer_id % microbatches))
        assert list(work_order(DUAL, ranks=ranks, rank=rank, microbatches=microbatches)) == expected


def _kind(instruction: object) -> Pass | None:
    kinds = {
        deepspeed_schedule.ForwardPass: Pass.FORWARD,
        deepspeed_schedule.BackwardPass: Pass.BACKWARD,
        WeightGradientPass: Pass.WEIGHT_GRADIENTS,
    }
    return kinds.get(type(instruction))


@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 4), (2, 4), (4, 16), (8, 8)])
def test_the_bubble_of_1f1b_is_the_known_one(ranks: int, microbatches: int) -> None:
    timeline = simulate(ONE, ranks=ranks, microbatches=microbatches, seconds=uniform)
    assert timeline.seconds == pytest.approx(3.0 * (microbatches + ranks - 1))
    assert timeline.bubble == pytest.approx((ranks - 1) / (microbatches + ranks - 1))


def apart(kind: Pass, stage: int) -> float:
    """With blocks that are recomputed: forward; that again and the input's gradient; the weights'."""
    return 2.0 if kind is Pass.BACKWARD else 1.0


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 16), (8, 16)])
def test_weight_gradients_that_wait_fill_what_the_source_says(ranks: int, microbatches: int) -> None:
    """ZB-H1's bubble is (ranks - 1) (forward + backward - weight gradients); of 1F1B these are added."""
    busy = 4.0 * microbatches
    for deferred, waits in ((0, 3.0), (ranks - 1, 2.0)):
        timeline = simulate(ONE, ranks=ranks, microbatches=microbatches, seconds=apart, deferred=deferred)
        assert timeline.seconds == pytest.approx(busy + (ranks - 1) * waits)


def test_dualpipev_waits_less_than_1f1b() -> None:
    def half(kind: Pass, stage: int) -> float:
        return uniform(kind, stage) / 2

    one = simulate(ONE, ranks=4, microbatches=16, seconds=uniform)
    dual = simulate(DUAL, ranks=4, microbatches=16, seconds=half)
    assert sum(map(one.busy_seconds, range(4))) == pytest.approx(sum(map(dual.busy_seconds, range(4))))
    assert dual.bubble < 0.7 * one.bubble


@pytest.mark.parametrize(("schedule", "deferred"), [(ONE, None), (ONE, 0), (ONE, 2), (DUAL, None)])
@pytest.mark.parametrize("transfer", [0.0, 0.13])
def test_a_long_step_is_computed_as_it_is_simulated(
    schedule: PipelineSchedule, deferred: int | None, transfer: float
) -> None:
    def uneven(kind: Pass, stage: int) -> float:
        return uniform(kind, stage) * (1.0 + 0.1 * (stage % 3))

    for microbatches in (30, 61):
        options: dict[str, Any] = {"seconds": uneven, "transfer_seconds": transfer, "deferred": deferred}
        timeline = simulate(schedule, ranks=3, microbatches=microbatches, **options)
        seconds, behind = step_length(schedule, ranks=3, microbatches=microbatches, **options)
        assert seconds == pytest.approx(timeline.seconds)
        ends = {
            timed.work.stage: timed.end for rank in timeline.ranks for timed in rank if timed.work.kind != "forward"
        }
        assert behind == pytest.approx([timeline.seconds - ends[stage] for stage in sorted(ends)])


def test_the_first_stage_keeps_most() -> None:
    orders = [work_order(ONE, ranks=4, rank=rank, microbatches=16) for rank in range(4)]
    assert [most_held(order, {rank: 1.0})[rank].kept for rank, order in enumerate(orders)] == [4, 3, 2, 1]
    folded = work_order(DUAL, ranks=4, rank=0, microbatches=16)
    first, second = most_held(folded, {0: 1.0})[0].kept, most_held(folded, {7: 1.0})[7].kept
    both = most_held(folded, {0: 1.0, 7: 1.0})
    assert max(both.values()).kept < first + second + 1
    assert max(both.values()) == (9, 0), "one more than twice the ranks"


def test_what_waits_is_held_beside_what_is_kept() -> None:
    """All ranks together hold as much: what one keeps less for passes to come, weight gradients may wait of."""
    for microbatches in (4, 16):
        orders = [work_order(ONE, ranks=4, rank=rank, microbatches=microbatches, deferred=3) for rank in range(4)]
        found = [most_held(order, {rank: 1.0}, {rank: 1.0})[rank] for rank, order in enumerate(orders)]
        assert found == [(4, 0), (3, 1), (2, 2), (1, 3)]
    few = work_order(ONE, ranks=4, rank=3, microbatches=2, deferred=3)
    assert most_held(few, {3: 1.0}, {3: 1.0})[3] == (1, 1)


def test_a_transfer_delays_what_waits_for_it() -> None:
    direct = simulate(ONE, ranks=2, microbatches=1, seconds=uniform).seconds
    assert simulate(ONE, ranks=2, microbatches=1, seconds=uniform, transfer_seconds=0.5).seconds == direct + 1.0


LONG = [(2, 4), (4, 16), (8, 32)]


@pytest.mark.parametrize(("ranks", "microbatches"), LONG)
def test_transfers_of_1f1b_take_the_time_of_messages_that_hold_up_both_ends(ranks: int, microbatches: int) -> None:
    transfer = 0.02
    timeline = simulate(ONE, ranks=ranks, microbatches=microbatches, seconds=uniform, transfer_seconds=transfer)
    ideal = 3.0 * (microbatches + ranks - 1)
    expected = _seconds_of_instructions(_instructions(ranks, microbatches), transfer) - ideal
    assert timeline.seconds - ideal == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("ranks", "microbatches"), LONG)
def test_transfers_take_the_time_of_messages_that_hold_up_nobody_where_weight_gradients_wait(
    ranks: int, microbatches: int
) -> None:
    for deferred in (0, ranks - 1):
        timeline = simulate(
            ONE, ranks=ranks, microbatches=microbatches, seconds=apart, transfer_seconds=0.02, deferred=deferred
        )
        expected = _seconds_of_posted_messages(_instructions(ranks, microbatches, deferred), 0.02)
        assert timeline.seconds == pytest.approx(expected)


@pytest.mark.parametrize(("ranks", "microbatches"), LONG)
def test_weight_gradients_that_wait_gain_nothing_more_where_messages_hold_up_both_ends(
    ranks: int, microbatches: int
) -> None:
    """Why a schedule that puts them off has messages of its own."""
    found = []
    for deferred in (0, ranks - 1):
        instructions = _instructions(ranks, microbatches)
        for rank, names in enumerate(instructions):
            names[:] = _with_weight_gradients(names, microbatches, waiting=min(deferred, rank))
        found.append(_seconds_of_instructions(instructions, 0.0))
    assert found[0] == found[1]
    best = simulate(ONE, ranks=ranks, microbatches=microbatches, seconds=apart, deferred=ranks - 1).seconds
    assert best < found[1] - 0.9 * (ranks - 1)


_SECONDS = {"ForwardPass": 1.0, "BackwardPass": 2.0, "WeightGradientPass": 1.0}
_TOWARDS = {"SendActivation": 1, "RecvActivation": -1, "SendGrad": -1, "RecvGrad": 1}
_TAKES = {"TakeActivation": ("PostActivation", -1), "TakeGradient": ("PostGradient", 1)}


def _instructions(ranks: int, microbatches: int, deferred: int | None = None) -> list[list[str]]:
    """Of each rank the passes and messages of a step, by name."""
    of_interest = {*_SECONDS, *_TOWARDS, *_TAKES, *(name for name, _ in _TAKES.values())}
    return [
        [
            name
            for step in one_f_one_b(ranks, rank, microbatches, deferred).steps()
            for name in (type(instruction).__name__ for instruction in step)
            if name in of_interest
        ]
        for rank in range(ranks)
    ]


def _with_weight_gradients(names: list[str], microbatches: int, *, waiting: int) -> list[str]:
    """DeepSpeed's instructions with weight gradients behind the exchange that follows a backward pass."""
    found: list[str] = []
    due = done = 0
    for name in names:
        may_wait = waiting if done < microbatches else 0
        if name not in _TOWARDS and due > may_wait:
            found += ["WeightGradientPass"] * (due - may_wait)
            due = may_wait
        found.append(name)
        due, done = due + (name == "BackwardPass"), done + (name == "BackwardPass")
    return found + ["WeightGradientPass"] * due


def _seconds_of_posted_messages(instructions: list[list[str]], transfer: float) -> float:
    """Instructions on a clock where a message travels by itself and holds up who needs it."""
    clock = [0.0] * len(instructions)
    posted: dict[tuple[str, int], list[float]] = {}
    left = [list(names) for names in instructions]
    while any(left):
        for rank, names in enumerate(left):
            while names:
                if names[0] in _TAKES:
                    name, towards = _TAKES[names[0]]
                    messages = posted.get((name, rank + towards), [])
                    if not messages:
                        break
                    clock[rank] = max(clock[rank], messages.pop(0) + transfer)
                elif names[0] in _SECONDS:
                    clock[rank] += _SECONDS[names[0]]
                else:
                    posted.setdefault((names[0], rank), []).append(clock[rank])
                names.pop(0)
    return max(clock)


def _seconds_of_instructions(instructions: list[list[str]], transfer: float) -> float:
    """DeepSpeed's instructions on a clock: a message begins when both ends have come to it, and holds up both."""
    other = {"SendActivation": "RecvActivation", "RecvActivation": "SendActivation"}
    other |= {"SendGrad": "RecvGrad", "RecvGrad": "SendGrad"}
    left = [list(names) for names in instructions]
    clock = [0.0] * len(left)
    while any(left):
        for rank, names in enumerate(left):
            while names:
                name = names[0]
                if name in _SECONDS:
                    clock[rank] += _SECONDS[name]
                else:
                    peer = rank + _TOWARDS[name]
                    if left[peer][:1] != [other[name]]:
                        break
                    clock[rank] = clock[peer] = max(clock[rank], clock[peer]) + transfer
                    left[peer].pop(0)
                names.pop(0)
    return max(clock)
