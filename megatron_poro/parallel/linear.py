"""Linear layers cut over the tensor group. With a group of one both are exactly ``nn.Linear``.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from megatron_poro.errors import TopologyError
from megatron_poro.parallel.collectives import copy_to_group, reduce_from_group
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.shards import Initial, ShardSpec, new_parameter


class ColumnParallelLinear(nn.Module):
    """``y = x W^T + b`` with the rows of ``W`` (the outputs) cut over the group: each rank computes its own outputs.

    Shapes:
        input ``[..., inputs]``, the same on every rank; output ``[..., outputs/tp]``.
    """

    def __init__(self, inputs: int, outputs: int, *, group: AxisGroup, init_std: float) -> None:
        super().__init__()
        _require_divisible(outputs, group, "outputs")
        self.group = group
        self.weight = new_parameter(ShardSpec((outputs, inputs), 0, group.rank, group.size), Initial(std=init_std))
        self.bias = new_parameter(ShardSpec((outputs,), 0, group.rank, group.size), Initial())

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(copy_to_group(hidden, self.group), self.weight, self.bias)  # [..., outputs/tp]


class RowParallelLinear(nn.Module):
    """``y = x W^T + b`` with the columns of ``W`` (the inputs) cut over the group: partial results are summed.

    The bias is whole on every rank and is added once, after the sum.

    Shapes:
        input ``[..., inputs/tp]``; output ``[..., outputs]``, the same on every rank.
    """

    def __init__(self, inputs: int, outputs: int, *, group: AxisGroup, init_std: float) -> None:
        super().__init__()
        _require_divisible(inputs, group, "inputs")
        self.group = group
        self.weight = new_parameter(ShardSpec((outputs, inputs), 1, group.rank, group.size), Initial(std=init_std))
        self.bias = new_parameter(ShardSpec((outputs,)), Initial())

    def forward(self, hidden: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.linear(hidden, self.weight, self.bias)
        return reduce_from_group(F.linear(hidden, self.weight), self.group) + self.bias  # [..., outputs]


def _require_divisible(width: int, group: AxisGroup, what: str) -> None:
    if width % group.size != 0:
        raise TopologyError(f"parallel.tensor={group.size} does not divide the {width} {what} of a linear layer.")
