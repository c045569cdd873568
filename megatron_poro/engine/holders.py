"""Which other processes hold a parameter of this one, or a term of its gradient."""

from typing import Any

import torch.distributed as dist
from torch import nn

from megatron_poro.engine.engine import CopyAxis
from megatron_poro.models.plan import LayerPlan
from megatron_poro.parallel.groups import AxisGroup, ParallelGroups
from megatron_poro.parallel.shards import is_partial, name_of, shard_of
from megatron_poro.parallel.step_clock import Part


class Holders:
    """Answers for the parameters of one process.

    Args:
        plan: the model.
        groups: the process grid.
        module: DeepSpeed's, which knows the groups of tied weights.
        dual: whether this process computes two stages.

    Attributes:
        ties: the processes of this replica that hold a weight of this stage at another one, where there are any, by the
            weight's canonical name.
    """

    def __init__(self, plan: LayerPlan, *, groups: ParallelGroups, module: Any, dual: bool) -> None:
        self._groups, self._dual, self._tied = groups, dual, plan.tied_roles
        found = {
            name_of(weight): AxisGroup(
                dist.get_rank(group), dist.get_world_size(group), group, part=Part.PIPELINE, clock=groups.clock
            )
            for weight, group in module.get_tied_weights_and_groups()
        }
        self.ties = {name: group for name, group in found.items() if group.size > 1}

    def completed_over(self, parameter: nn.Parameter) -> AxisGroup:
        """Who of this replica has a term of a parameter's gradient: the ends of a tie, or of a whole parameter the
        tensor ranks, each for its positions.
        """
        if is_partial(parameter):
            return self._groups.tensor
        return self.ties.get(name_of(parameter), AxisGroup.single())

    def uses(self, parameter: nn.Parameter) -> int:
        """How many backward passes of a microbatch give a parameter a gradient: DualPipeV runs both stages of a process
        one after the other, and the first process has a tied weight in both.
        """
        return 2 if self._dual and self._is_tied(parameter) else 1

    def counts_in_norm(self, parameter: nn.Parameter) -> bool:
        """Whether this process adds the parameter to the global norm: each element of the model is counted once."""
        if parameter.ds_pipe_replicated:  # type: ignore[attr-defined]
            return False
        return shard_of(parameter).dim is not None or self._groups.tensor.rank == 0

    def copy_axes(self, parameter: nn.Parameter) -> frozenset[CopyAxis]:
        """Along which axes other processes hold the whole shard of a parameter too."""
        axes = {CopyAxis.DATA}
        if shard_of(parameter).dim is None:
            axes.add(CopyAxis.TENSOR)
        if self._is_tied(parameter):
            axes.add(CopyAxis.PIPELINE)
        return frozenset(axes)

    def _is_tied(self, parameter: nn.Parameter) -> bool:
        return name_of(parameter).partition(".")[0] in self._tied
