"""The simulated pipeline is the one that runs, and its clock is right where a formula is known."""

import pytest
from deepspeed.runtime.pipe import schedule as deepspeed_schedule

from megatron_poro.config.run import PipelineSchedule
from megatron_poro.planning.pipeline import (
    Pass,
    Work,
    most_kept,
    simulate,
    step_length,
    work_order,
)

ONE, DUAL = PipelineSchedule.ONE_F_ONE_B, PipelineSchedule.DUALPIPEV


def uniform(kind: Pass, stage: int) -> float:
    return 1.0 if kind is Pass.FORWARD else 2.0


@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 1), (1, 3), (2, 1), (2, 5), (4, 2), (4, 16), (5, 7)])
def test_1f1b_is_deepspeeds_order(ranks: int, microbatches: int) -> None:
    for rank in range(ranks):
        theirs = deepspeed_schedule.TrainSchedule(microbatches, ranks, rank)
        done = {Pass.FORWARD: 0, Pass.BACKWARD: 0}
        expected = []
        for instruction in (instruction for step in theirs.steps() for instruction in step):
            kind = _kind(instruction)
            if kind is not None:
                expected.append(Work(kind, rank, done[kind]))
                done[kind] += 1
        assert work_order(ONE, ranks=ranks, rank=rank, microbatches=microbatches) == expected


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
        assert work_order(DUAL, ranks=ranks, rank=rank, microbatches=microbatches) == expected


def _kind(instruction: object) -> Pass | None:
    if isinstance(instruction, deepspeed_schedule.ForwardPass):
        return Pass.FORWARD
    return Pass.BACKWARD if isinstance(instruction, deepspeed_schedule.BackwardPass) else None


@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 4), (2, 4), (4, 16), (8, 8)])
def test_the_bubble_of_1f1b_is_the_known_one(ranks: int, microbatches: int) -> None:
    timeline = simulate(ONE, ranks=ranks, microbatches=microbatches, seconds=uniform)
    assert timeline.seconds == pytest.approx(3.0 * (microbatches + ranks - 1))
    assert timeline.bubble == pytest.approx((ranks - 1) / (microbatches + ranks - 1))


def test_dualpipev_waits_less_than_1f1b() -> None:
    def half(kind: Pass, stage: int) -> float:
        return uniform(kind, stage) / 2

    one = simulate(ONE, ranks=4, microbatches=16, seconds=uniform)
    dual = simulate(DUAL, ranks=4, microbatches=16, seconds=half)
    assert sum(map(one.busy_seconds, range(4))) == pytest.approx(sum(map(dual.busy_seconds, range(4))))
    assert dual.bubble < 0.7 * one.bubble


@pytest.mark.parametrize("schedule", [ONE, DUAL])
@pytest.mark.parametrize("transfer", [0.0, 0.13])
def test_a_long_step_is_computed_as_it_is_simulated(schedule: PipelineSchedule, transfer: float) -> None:
    def uneven(kind: Pass, stage: int) -> float:
        return uniform(kind, stage) * (1.0 + 0.1 * (stage % 3))

    for microbatches in (30, 61):
        timeline = simulate(schedule, ranks=3, microbatches=microbatches, seconds=uneven, transfer_seconds=transfer)
        seconds, behind = step_length(
            schedule, ranks=3, microbatches=microbatches, seconds=uneven, transfer_seconds=transfer
        )
        assert seconds == pytest.approx(timeline.seconds)
        ends = {
            timed.work.stage: timed.end for rank in timeline.ranks for timed in rank if timed.work.kind == "backward"
        }
        assert behind == pytest.approx([timeline.seconds - ends[stage] for stage in sorted(ends)])


def test_the_first_stage_keeps_most() -> None:
    orders = [work_order(ONE, ranks=4, rank=rank, microbatches=16) for rank in range(4)]
    assert [most_kept(order, {rank: 1.0})[rank] for rank, order in enumerate(orders)] == [4, 3, 2, 1]
    folded = work_order(DUAL, ranks=4, rank=0, microbatches=16)
    first, second = most_kept(folded, {0: 1.0})[0], most_kept(folded, {7: 1.0})[7]
    both = most_kept(folded, {0: 1.0, 7: 1.0})
    assert max(both.values()) < first + second + 1
    assert max(both.values()) == 9, "one more than twice the ranks"


def test_a_transfer_delays_what_waits_for_it() -> None:
    direct = simulate(ONE, ranks=2, microbatches=1, seconds=uniform).seconds
    assert simulate(ONE, ranks=2, microbatches=1, seconds=uniform, transfer_seconds=0.5).seconds == direct + 1.0


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 16), (8, 32)])
def test_transfers_of_1f1b_take_the_time_of_messages_that_hold_up_both_ends(ranks: int, microbatches: int) -> None:
    transfer = 0.02
    timeline = simulate(ONE, ranks=ranks, microbatches=microbatches, seconds=uniform, transfer_seconds=transfer)
    ideal = 3.0 * (microbatches + ranks - 1)
    expected = _seconds_of_instructions(ranks, microbatches, transfer) - ideal
    assert timeline.seconds - ideal == pytest.approx(expected, rel=0.1)


def _seconds_of_instructions(ranks: int, microbatches: int, transfer: float) -> float:
    """DeepSpeed's instructions on a clock: a message begins when both ends have come to it, and holds up both."""
    towards = {"SendActivation": 1, "RecvActivation": -1, "SendGrad": -1, "RecvGrad": 1}
    other = {"SendActivation": "RecvActivation", "RecvActivation": "SendActivation"}
    other |= {"SendGrad": "RecvGrad", "RecvGrad": "SendGrad"}
    seconds = {"ForwardPass": 1.0, "BackwardPass": 2.0}
    left = [
        [
            name
            for step in deepspeed_schedule.TrainSchedule(microbatches, ranks, rank).steps()
            for name in (type(instruction).__name__ for instruction in step)
            if name in towards or name in seconds
        ]
        for rank in range(ranks)
    ]
    clock = [0.0] * ranks
    while any(left):
        for rank in range(ranks):
            while left[rank]:
                name = left[rank][0]
                if name in seconds:
                    clock[rank] += seconds[name]
                else:
                    peer = rank + towards[name]
                    if left[peer][:1] != [other[name]]:
                        break
                    clock[rank] = clock[peer] = max(clock[rank], clock[peer]) + transfer
                    left[peer].pop(0)
                left[rank].pop(0)
    return max(clock)
