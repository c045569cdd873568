"""Messages between neighbours of a pipeline that travel while both compute: a sender waits for nobody.

Each direction across each boundary has a communicator of its own, so that a message that is not yet taken holds up no
other one: messages of a communicator are carried in the order in which they were posted. Even and odd boundaries are
enough to tell apart, since a process has one of each.
"""

from collections import deque
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_poro.parallel.groups import ParallelGroups


class Outbox:
    """Where a process posts messages for a neighbour.

    Args:
        peer: the neighbour's rank in the run.
        group: the communicator.
        most: messages under way at a time. When one more is posted, the oldest must have arrived or is waited for.
    """

    def __init__(self, peer: int, group: Any, *, most: int) -> None:
        self._peer, self._group, self._most = peer, group, most
        self._under_way: deque[tuple[Any, Tensor]] = deque()

    def post(self, message: Tensor) -> None:
        """Begins to send; the message is held until it has arrived, and must not be written to."""
        while self._under_way and (self._under_way[0][0].is_completed() or len(self._under_way) >= self._most):
            self._under_way.popleft()[0].wait()
        whole = message.detach().contiguous()
        self._under_way.append((dist.isend(whole, self._peer, group=self._group), whole))

    def finish(self) -> None:
        """Waits until all has arrived."""
        while self._under_way:
            self._under_way.popleft()[0].wait()


class Inbox:
    """Where messages of a neighbour arrive, one while the one before is used.

    Args:
        peer: the neighbour's rank in the run.
        group: the communicator.
    """

    def __init__(self, peer: int, group: Any) -> None:
        self._peer, self._group = peer, group
        self._arriving: tuple[Any, Tensor] | None = None
        self._to_come = 0

    def expect(self, messages: int) -> None:
        """Before a step: how many messages will be posted in it."""
        self._to_come, self._arriving = messages, None

    def take(self, like: Tensor) -> Tensor:
        """Waits for the next message.

        Args:
            like: has the shape and format of all messages.
        """
        self._receive(like)
        assert self._arriving is not None, "more messages were taken than are expected in this step"
        (work, message), self._arriving = self._arriving, None
        work.wait()
        self._receive(like)
        return message

    def _receive(self, like: Tensor) -> None:
        if self._arriving is None and self._to_come > 0:
            message = torch.empty_like(like, requires_grad=False)
            self._arriving = dist.irecv(message, self._peer, group=self._group), message
            self._to_come -= 1


class Lanes(NamedTuple):
    """What a process of a pipeline has of messages; ``None`` where it has no such neighbour.

    Attributes:
        activations_in: from the stage before.
        activations_out: to the stage behind.
        gradients_in: from the stage behind.
        gradients_out: to the stage before.
    """

    activations_in: Inbox | None
    activations_out: Outbox | None
    gradients_in: Inbox | None
    gradients_out: Outbox | None

    @classmethod
    def create(cls, groups: ParallelGroups) -> "Lanes":
        """Makes the communicators. A collective call over the run."""
        (activations, gradients) = [[dist.new_group() for _even_or_odd in range(2)] for _direction in range(2)]
        ranks, here = groups.topology.pipeline_ranks(groups.coordinate), groups.pipeline.rank
        before, behind = (here - 1) % 2, here % 2  # boundaries, by the rank in front of them
        # under 1F1B a stage has no more activations than these in later stages, and gradients one more in earlier ones
        most = len(ranks) - here
        first, last = here == 0, here == len(ranks) - 1
        return cls(
            activations_in=None if first else Inbox(ranks[here - 1], activations[before]),
            activations_out=None if last else Outbox(ranks[here + 1], activations[behind], most=most),
            gradients_in=None if last else Inbox(ranks[here + 1], gradients[behind]),
            gradients_out=None if first else Outbox(ranks[here - 1], gradients[before], most=most + 1),
        )

    def start_step(self, microbatches: int) -> None:
        """Before the first message of a step."""
        for inbox in (self.activations_in, self.gradients_in):
            if inbox is not None:
                inbox.expect(microbatches)

    def finish(self) -> None:
        """Behind the last message of a step: waits until all has arrived."""
        for outbox in (self.activations_out, self.gradients_out):
            if outbox is not None:
                outbox.finish()
