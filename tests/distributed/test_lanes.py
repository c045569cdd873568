"""Messages between neighbours: in order, both ways at once, and a sender that waits for nobody."""

import threading

import torch
import torch.distributed as dist

from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.lanes import Lanes
from megatron_poro.parallel.topology import Topology
from tests.support.ranks import run_ranks

LIKE = torch.empty(2, 3)


def message(rank: int, number: int) -> torch.Tensor:
    return torch.full_like(LIKE, 10.0 * rank + number)


def exchange(steps: int, messages: int) -> list[tuple[list[float], list[float]]]:
    """What a rank takes of both neighbours. Everybody posts all it has before it takes anything."""
    lanes = Lanes.create(ParallelGroups.create(Topology(pipeline=dist.get_world_size())))
    rank, found = dist.get_rank(), []
    for step in range(steps):
        lanes.start_step(messages)
        for number in range(messages):
            for outbox in (lanes.activations_out, lanes.gradients_out):
                if outbox is not None:
                    outbox.post(message(rank, number) + 100 * step)
        taken = [
            [float(inbox.take(LIKE)[0, 0]) for _ in range(messages)] if inbox is not None else []
            for inbox in (lanes.activations_in, lanes.gradients_in)
        ]
        found.append((taken[0], taken[1]))
        lanes.finish()
    return found


def test_each_message_comes_to_its_neighbour_in_order() -> None:
    for rank, steps in enumerate(run_ranks(exchange, 2, 2, world=3)):
        for step, (activations, gradients) in enumerate(steps):
            before = [10.0 * (rank - 1) + number + 100 * step for number in range(2)] if rank > 0 else []
            behind = [10.0 * (rank + 1) + number + 100 * step for number in range(2)] if rank < 2 else []
            assert (activations, gradients) == (before, behind)


def post_until_full() -> list[bool]:
    """Whether the first rank got on after posting each of three messages, of which its lane holds two."""
    lanes = Lanes.create(ParallelGroups.create(Topology(pipeline=2)))
    lanes.start_step(3)
    if lanes.activations_out is None:
        dist.barrier()  # the other one has seen what it wanted to
        assert lanes.activations_in is not None
        assert [float(lanes.activations_in.take(LIKE)[0, 0]) for _ in range(3)] == [0.0, 1.0, 2.0]
        return []
    got_on = []
    for number in range(3):
        posting = threading.Thread(target=lanes.activations_out.post, args=(message(0, number),))
        posting.start()
        posting.join(timeout=60.0 if number < 2 else 0.2)
        got_on.append(not posting.is_alive())
    dist.barrier()
    posting.join()
    lanes.finish()
    return got_on


def test_a_sender_waits_for_nobody_before_its_lane_is_full() -> None:
    assert run_ranks(post_until_full, world=2)[0] == [True, True, False]


def take_too_many() -> str:
    lanes = Lanes.create(ParallelGroups.create(Topology(pipeline=2)))
    lanes.start_step(1)
    if lanes.activations_out is not None:
        lanes.activations_out.post(message(0, 0))
        lanes.finish()
        return ""
    assert lanes.activations_in is not None
    lanes.activations_in.take(LIKE)
    try:
        lanes.activations_in.take(LIKE)
    except AssertionError as error:
        return str(error)
    return "nothing was said"


def test_more_messages_than_a_step_has_are_not_waited_for() -> None:
    assert "more messages were taken" in run_ranks(take_too_many, world=2)[1]
