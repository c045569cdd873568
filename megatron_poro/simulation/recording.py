"""What a process sends: every collective and message that it issues, seen where PyTorch dispatches them.

A recording sees what formulas leave out, because it does not know what is meant to be sent. It works alike for a run of
real processes and for one process of a grid that is not there.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_GROUP_POSITION = {
    "allreduce_": 1,
    "allreduce_coalesced_": 1,
    "broadcast_": 1,
    "reduce_": 1,
    "send": 1,
    "recv_": 1,
    "recv_any_source_": 1,
    "barrier": 1,
    "allgather_": 2,
    "_allgather_base_": 2,
    "allgather_into_tensor_coalesced_": 2,
    "reduce_scatter_": 2,
    "_reduce_scatter_base_": 2,
    "reduce_scatter_tensor_coalesced_": 2,
    "gather_": 2,
    "scatter_": 2,
    "alltoall_": 2,
    "alltoall_base_": 2,
}
"""Which argument of torch's operators is the process group."""

_NAMES = {"_allgather_base_": "allgather", "_reduce_scatter_base_": "reduce_scatter", "alltoall_base_": "alltoall"}


class Collective(NamedTuple):
    """One collective call, or one message.

    Attributes:
        kind: ``allreduce``, ``allgather``, ``broadcast``, ``send``, ``recv``, ...
        ranks: of the group in its order; of a message the two ends, sender first.
        size_bytes: of the whole tensor: what is summed or scattered, the gathered result, the message.
        shape: of the tensor, the first one where there are several.
        dtype: its format.
    """

    kind: str
    ranks: tuple[int, ...]
    size_bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def sent_bytes(self, rank: int) -> float:
        """Bytes that a process sends for it: messages as they are, collectives around a ring, broadcasts by the root.

        Args:
            rank: the process.
        """
        members = len(self.ranks)
        if self.kind == "recv" or members == 1:
            return 0.0
        if self.kind in ("send", "broadcast"):
            return float(self.size_bytes) if rank == self.ranks[0] else 0.0
        passes = 2 if self.kind.startswith("allreduce") else 1
        return passes * (members - 1) / members * self.size_bytes


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the collectives that are issued inside ``with recording:``, in order.

    Attributes:
        collectives: what was issued.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.collectives: list[Collective] = []

    def take(self) -> list[Collective]:
        """What was issued since the last call."""
        taken, self.collectives = self.collectives, []
        return taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.collectives.append(_collective(func, args))
        return func(*args, **(kwargs or {}))


def totals(collectives: Iterable[Collective]) -> dict[tuple[str, tuple[int, ...]], tuple[int, int]]:
    """Count and bytes of collectives by kind and ranks."""
    found: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
    for one in collectives:
        count, size = found.get((one.kind, one.ranks), (0, 0))
        found[one.kind, one.ranks] = (count + 1, size + one.size_bytes)
    return found


def _collective(func: Any, args: Any) -> Collective:
    """A collective as the arguments of torch's operator tell it."""
    operator = func._schema.name.rpartition("::")[2]
    assert operator in _GROUP_POSITION, f"{func} is not in the table of collectives; add where its group stands"
    position = _GROUP_POSITION[operator]
    group = dist.ProcessGroup.unbox(args[position])
    ranks = tuple(dist.get_process_group_ranks(group))
    if operator in ("send", "recv_"):
        other, here = ranks[args[position + 1]], ranks[group.rank()]
        ranks = (here, other) if operator == "send" else (other, here)
    elif operator == "broadcast_":
        root = ranks[args[position + 1]]
        ranks = (root, *(rank for rank in ranks if rank != root))
    # what is scattered is handed over behind what each process gets
    whole = args[1] if "scatter" in operator else args[0]
    tensors = [leaf for leaf in tree_leaves(whole) if isinstance(leaf, Tensor)]
    return Collective(
        kind=_NAMES.get(operator, operator.strip("_")),
        ranks=ranks,
        size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        shape=tuple(tensors[0].shape) if tensors else (),
        dtype=tensors[0].dtype if tensors else torch.uint8,
    )
