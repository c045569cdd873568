"""Stacks are written so that they read back, and tell which process keeps the others waiting."""

import threading

import pytest

from megatron_poro.train.peers import Peer
from megatron_poro.train.stacks import Frame, Stacks, capture, delaying_ones, odd_ones, report

WAITING = (
    Frame("torch/distributed/distributed_c10d.py", 3000, "all_reduce"),
    Frame("torch/distributed/c10d_logger.py", 83, "wrapper"),
    Frame("megatron_poro/parallel/collectives.py", 36, "all_reduce"),
    Frame("megatron_poro/models/attention.py", 90, "forward"),
)
ELSEWHERE = (*WAITING[:2], Frame("megatron_poro/train/control.py", 170, "agree"))
BUSY = (Frame("megatron_poro/data/loading.py", 62, "result"), Frame("megatron_poro/train/loop.py", 70, "train_step"))


def _stacks(rank: int, frames: tuple[Frame, ...], *, marks: int = 7) -> Stacks:
    return Stacks(rank, "step after step 3", marks, 31.0, {"MainThread": frames, "watchdog": ()})


def test_stacks_read_back_as_they_were_written() -> None:
    stacks = _stacks(3, WAITING)
    assert Stacks.decode(stacks.encode()) == stacks


def test_stacks_of_this_process_hold_all_threads_but_the_one_that_asks() -> None:
    release, captured = threading.Event(), []
    other = threading.Thread(target=release.wait, name="a reader")
    other.start()
    asking = threading.Thread(
        target=lambda: captured.append(capture(rank=0, phase="data", marks=1, quiet_seconds=2.0)), name="watchdog"
    )
    asking.start()
    asking.join()
    release.set()
    other.join()
    assert {"MainThread", "a reader"} <= captured[0].threads.keys()
    assert "watchdog" not in captured[0].threads
    assert any(
        frame.function == "test_stacks_of_this_process_hold_all_threads_but_the_one_that_asks"
        for frame in captured[0].main
    )
    assert Stacks.decode(captured[0].encode()) == captured[0]


@pytest.mark.parametrize(
    ("frames", "marks", "odd"),
    [
        ([WAITING, None, WAITING, WAITING], [7, 7, 7, 7], [1]),
        ([WAITING, WAITING, BUSY, WAITING], [7, 7, 7, 7], [2]),
        ([BUSY, BUSY, WAITING, WAITING], [7, 7, 7, 7], [0, 1]),
        ([WAITING, WAITING, WAITING, ELSEWHERE], [7, 7, 7, 8], [3]),
        ([WAITING, ELSEWHERE, WAITING, WAITING], [7, 7, 7, 7], [1]),
        ([WAITING, ELSEWHERE], [7, 8], [1]),
        ([WAITING, WAITING], [7, 7], []),
        ([BUSY, BUSY], [7, 7], []),
    ],
    ids=["no stacks", "busy", "two busy", "further", "elsewhere", "further of two", "all alike", "all busy"],
)
def test_odd_one_is_found(frames: list[tuple[Frame, ...] | None], marks: list[int], odd: list[int]) -> None:
    stacks = [_stacks(rank, one, marks=marks[rank]) for rank, one in enumerate(frames) if one is not None]
    assert odd_ones(stacks, range(len(frames))) == odd


@pytest.mark.parametrize(
    ("frames", "delaying"),
    [([WAITING, None], [1]), ([BUSY, WAITING], [0]), ([BUSY, BUSY], []), ([WAITING, ELSEWHERE], [])],
    ids=["no stacks", "busy", "all busy", "a bug"],
)
def test_only_who_does_not_wait_keeps_the_others_waiting(
    frames: list[tuple[Frame, ...] | None], delaying: list[int]
) -> None:
    stacks = [_stacks(rank, one, marks=7) for rank, one in enumerate(frames) if one is not None]
    assert delaying_ones(stacks, range(len(frames))) == delaying


def test_report_names_the_odd_one_with_its_place_and_groups_the_others() -> None:
    peers = [Peer(rank, f"node{rank // 2}", 100 + rank, "5") for rank in range(4)]
    stacks = [_stacks(0, WAITING), _stacks(1, BUSY), _stacks(2, WAITING)]
    missing, *groups = report([stacks[0], stacks[2]], peers[:3])
    assert missing == (
        "rank 1 (host node0, process 101) is the odd one: it wrote no stacks, so it is stopped or dead, or its machine "
        "is"
    )
    assert len(groups) == 1
    odd, others = report(stacks, peers[:3])
    assert odd == (
        "rank 1 (host node0, process 101) is the odd one: busy in phase 'step after step 3', 31 s, at result "
        "(megatron_poro/data/loading.py:62) < train_step (megatron_poro/train/loop.py:70)"
    )
    assert others == (
        "ranks 0, 2: waits for others in phase 'step after step 3', at all_reduce "
        "(torch/distributed/distributed_c10d.py:3000) < all_reduce (megatron_poro/parallel/collectives.py:36) < "
        "forward (megatron_poro/models/attention.py:90)"
    )
