"""Linear layers cut over the tensor group. With a group of one both are exactly ``nn.Linear``.

With ``sequence`` the tensors outside of a pair of them are cut along the sequence, see
:mod:`megatron_poro.parallel.sequence`.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from megatron_poro.errors import TopologyError
from megatron_poro.parallel.collectives import copy_to_group, reduce_from_group
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.sequence import linear_of_cut_sequence, reduce_to_cut_sequence
from megatron_poro.parallel.shards import Initial, ShardSpec, mark_partial, new_parameter


class ColumnParallelLinear(nn.Module):
    """``y = x W^T + b`` with the rows of ``W`` (the outputs) cut over the group: each rank computes its own outputs.

    Shapes:
        input ``[..., inputs]``, the same on every rank, or with ``sequence`` each rank's positions
        ``[b, s/tp, inputs]``; output ``[..., outputs/tp]`` of all positions.
    """

    def __init__(self, inputs: int, outputs: int, *, group: AxisGroup, init_std: float, sequence: bool = False) -> None:
        super().__init__()
        _require_divisible(outputs, group, "outputs")
        self.group, self.cut_sequence = group, sequence and group.size > 1
        self.weight = new_parameter(ShardSpec((outputs, inputs), 0, group.rank, group.size), Initial(std=init_std))
        self.bias = new_parameter(ShardSpec((outputs,), 0, group.rank, group.size), Initial())

    def forward(self, hidden: Tensor) -> Tensor:
        if self.cut_sequence:
            return linear_of_cut_sequence(hidden, self.weight, self.bias, self.group)  # [b, s, outputs/tp]
        return F.linear(copy_to_group(hidden, self.group), self.weight, self.bias)  # [..., outputs/tp]


class RowParallelLinear(nn.Module):
    """``y = x W^T + b`` with the columns of ``W`` (the inputs) cut over the group: partial results are summed.

    The bias is whole on every rank and is added once, after the sum; with ``sequence`` to each rank's positions.

    Shapes:
        input ``[..., inputs/tp]``; output ``[..., outputs]``, the same on every rank, or with ``sequence`` each rank's
        positions ``[b, s/tp, outputs]``.
    """

    def __init__(self, inputs: int, outputs: int, *, group: AxisGroup, init_std: float, sequence: bool = False) -> None:
        super().__init__()
        _require_divisible(inputs, group, "inputs")
        self.group, self.cut_sequence = group, sequence and group.size > 1
        self.weight = new_parameter(ShardSpec((outputs, inputs), 1, group.rank, group.size), Initial(std=init_std))
        self.bias = new_parameter(ShardSpec((outputs,)), Initial())
        if self.cut_sequence:
            mark_partial(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.group.size == 1:
            return F.linear(hidden, self.weight, self.bias)
        if self.cut_sequence:
            return reduce_to_cut_sequence(F.linear(hidden, self.weight), self.group) + self.bias  # [b, s/tp, outputs]
        return reduce_from_group(F.linear(hidden, self.weight), self.group) + self.bias  # [..., outputs]


def _require_divisible(width: int, group: AxisGroup, what: str) -> None:
    if width % group.size != 0:
        raise TopologyError(f"parallel.tensor={group.size} does not divide the {width} {what} of a linear layer.")
