"""What a recorded call says, and what it costs its rank."""

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_poro.simulation.recording import Collective, Recording


def test_calls_are_noted_with_group_shape_and_bytes() -> None:
    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    try:
        pair = dist.new_group([1, 3])
        with Recording() as recording:
            tensor = torch.zeros(2, 3)
            dist.all_reduce(tensor, group=pair)
            dist.send(tensor, 2)
            dist.recv(tensor, 0)
            dist.broadcast(tensor, src=3, group=pair)
            dist.all_gather(list(torch.zeros(4, 6).bfloat16()), torch.zeros(6).bfloat16())
        noted = recording.take()
    finally:
        dist.destroy_process_group()
    assert [(one.kind, one.ranks, one.size_bytes) for one in noted] == [
        ("allreduce", (1, 3), 24),
        ("send", (1, 2), 24),
        ("recv", (0, 1), 24),
        ("broadcast", (3, 1), 24),
        ("allgather", (0, 1, 2, 3), 48),
    ]
    assert (noted[0].shape, noted[0].dtype) == ((2, 3), torch.float32)
    assert recording.take() == []


def test_sent_bytes_are_those_of_a_ring_a_message_and_a_root() -> None:
    def sent(kind: str, rank: int) -> float:
        return Collective(kind, (0, 1, 2, 3), 400, (100,), torch.float32).sent_bytes(rank)

    assert sent("allreduce", 2) == 600
    assert sent("allgather", 2) == 300
    assert (sent("broadcast", 0), sent("broadcast", 1)) == (400, 0)
    message = Collective("send", (0, 1), 400, (100,), torch.float32)
    assert (message.sent_bytes(0), message._replace(kind="recv").sent_bytes(1)) == (400, 0)
