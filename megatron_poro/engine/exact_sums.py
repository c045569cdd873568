"""The sums of a step with the same bits at every number of replicas, accumulation steps and stages.

What a microbatch computes does not depend on the layout; what is added up over microbatches does, since floats round
after every term. Here nothing that is added up depends on order or grouping: gradients are added as integers
(:mod:`megatron_poro.engine.fixed_point`), losses and squares of the gradient are gathered and added by ``math.fsum``,
which is correctly rounded. The gradient that flows into a microbatch's backward pass is a power of two that follows
from the loss tokens of the step alone; what is missing to the mean is multiplied in once, at the end.

Takes 8 bytes per parameter beside the 4 of the sums, and an all-reduce of them in place of a reduce-scatter of those.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from megatron_poro.engine.fixed_point import FixedPointSums
from megatron_poro.engine.objective import LossParts, Targets
from megatron_poro.engine.step_sums import Gradients, StepTotals
from megatron_poro.models.plan import LayerPlan
from megatron_poro.parallel.collectives import all_reduce
from megatron_poro.parallel.groups import AxisGroup, ParallelGroups
from megatron_poro.parallel.shards import is_partial, name_of, shard_of
from megatron_poro.parallel.ties import receive_apart


class ExactSums:
    """Order-free sums; takes each microbatch's gradients as autograd makes them. Construction is collective.

    Args:
        plan: the model, for the tied weights.
        groups: the process grid.
        parameters: those of this process.
        ties: the processes that hold a tied parameter at other stages, where there are any, by canonical name.
        microbatches: of a step, over all replicas.
        has_loss: whether this process computes the loss.
        counts_in_norm: whether this process adds a parameter to the gradient norm.
        num_sources: sources of the mixture.
        device: where this process computes.
    """

    def __init__(
        self,
        plan: LayerPlan,
        *,
        groups: ParallelGroups,
        parameters: Iterable[nn.Parameter],
        ties: Mapping[str, AxisGroup],
        microbatches: int,
        has_loss: bool,
        counts_in_norm: Callable[[nn.Parameter], bool],
        num_sources: int,
        device: torch.device,
    ) -> None:
        self._groups, self._has_loss, self._counts_in_norm = groups, has_loss, counts_in_norm
        self._ties, self._num_sources, self._device = ties, num_sources, device
        held = {name_of(parameter): parameter for parameter in parameters}
        self._index = {name: index for index, name in enumerate(held)}
        tied_uses = Counter(f"{entry.tied_to}.weight" for entry in plan.entries if entry.tied_to is not None)
        self._apart = [tied_uses[name] * microbatches for name in held]
        self._partial = [self._index[name] for name, parameter in held.items() if is_partial(parameter)]
        uses = max(1 + max(tied_uses.values(), default=0), groups.tensor.size if self._partial else 1)
        self._sums = FixedPointSums(
            [parameter.numel() for parameter in held.values()],
            terms=microbatches * uses,
            device=device,
        )
        for index, parameter in enumerate(held.values()):
            self._listen(index, parameter)
        # where in the grid's list of squares each of this process's goes
        counted = [(name, shard_of(p).rank) for name, p in held.items() if counts_in_norm(p)]
        everyone = sorted({place for places in groups.world.gather(counted) for place in places})
        self._places = {place: position for position, place in enumerate(everyone)}
        self._samples: list[Tensor] = []
        self._weight, self._seed = math.nan, 1.0

    def start_step(self, weights: Sequence[Tensor]) -> None:
        self._sums.clear()
        self._samples.clear()
        if self._has_loss:
            rows = torch.stack(list(weights)).to(self._device, torch.float64)
            self._weight = _total(self._over_replicas(rows).tolist())
            self._seed = _power_of_two_below(self._weight)

    def start_evaluation(self) -> None:
        self._samples.clear()

    def add_losses(self, parts: LossParts, targets: Targets) -> Tensor:
        columns = (targets.sources, parts.sample_loss_sums, targets.loss_mask.sum(dim=-1))
        self._samples.append(torch.stack([column.double() for column in columns], dim=-1))  # [b, 3]
        return parts.loss_sum * self._seed

    def reduce_gradients(self, gradients: Gradients) -> None:
        """Writes the mean gradient over the global batch into ``gradients``, whole and in the parameters' shapes.

        Collective; called once a step, after the last backward pass.
        """
        self._add_up_partial()
        all_reduce(self._sums.buffer, self._groups.data)
        for name, tie in self._ties.items():
            all_reduce(self._sums.parts[self._index[name]], tie)
        found = self._sums.counts_apart()
        assert found == self._apart, (
            f"layers that are tied to another one's weight took it through tied_use {found} times, not {self._apart}"
        )
        factor = self._mean_factor()
        for parameter, gradient in gradients:
            self._sums.write(self._index[name_of(parameter)], gradient, factor=factor)

    def totals(self, gradients: Gradients) -> StepTotals:
        squares = torch.zeros(len(self._places), dtype=torch.float64, device=self._device)
        for parameter, gradient in gradients:
            if self._counts_in_norm(parameter):
                place = self._places[name_of(parameter), shard_of(parameter).rank]
                # of a copy, which begins at an aligned address whatever the layout
                squares[place] = gradient.double().square_().sum()
        mine = self._source_sums()
        # each number comes from one process, so that adding up moves them and rounds nothing
        packed = all_reduce(torch.cat([squares, mine.view(-1)]), self._groups.replica)
        norm = math.sqrt(_total(packed[: len(squares)].tolist()))
        losses, weights = packed[len(squares) :].view_as(mine)
        loss = losses.sum() / weights.sum()
        return StepTotals(loss.float(), torch.tensor(norm, device=self._device), losses.float(), weights.float())

    def _listen(self, index: int, parameter: nn.Parameter) -> None:
        """Takes the gradient of each backward pass, before it is added to anything."""
        parameter.register_hook(lambda gradient: self._sums.add(index, gradient))  # type: ignore[no-untyped-call]
        receive_apart(parameter, lambda gradient: self._sums.add_apart(index, gradient))

    def _add_up_partial(self) -> None:
        """Over the tensor group, where each rank saw its positions only; the sums are exact, so in any order."""
        if self._partial:
            parts = [self._sums.parts[index] for index in self._partial]
            packed = all_reduce(torch.cat(parts), self._groups.tensor)
            for part, total in zip(parts, torch.split(packed, [part.numel() for part in parts]), strict=True):
                part.copy_(total)

    def _mean_factor(self) -> float:
        """What makes the token mean of a summed gradient; told to the stages that compute no loss."""
        knows = self._has_loss and self._groups.tensor.rank == 0
        told = torch.tensor([self._weight, self._seed] if knows else [0.0, 0.0], dtype=torch.float64)
        weight, seed = all_reduce(told.to(self._device), self._groups.replica).tolist()
        return 1.0 / (weight * seed) if weight else math.nan

    def _source_sums(self) -> Tensor:
        """Sums of losses and weights per source over the global batch, fp64 ``[2, num_sources]``; one process of each
        replica has them, the others zeros.
        """
        sums = torch.zeros(2, self._num_sources, dtype=torch.float64, device=self._device)
        if self._has_loss and self._samples:
            samples = self._over_replicas(torch.cat(self._samples)).tolist()
            if self._groups.tensor.rank == 0:
                for source in range(self._num_sources):
                    sums[0, source] = _total([loss for of, loss, _ in samples if of == source])
                    sums[1, source] = _total([weight for of, _, weight in samples if of == source])
        return sums

    def _over_replicas(self, rows: Tensor) -> Tensor:
        """All replicas' rows, as many from each, one below the other."""
        group = self._groups.data
        table = rows.new_zeros(group.size, *rows.shape)
        table[group.rank] = rows
        return all_reduce(table, group).flatten(0, 1)


def _total(values: Sequence[float]) -> float:
    """The correctly rounded sum, which no order changes; NaN if it is not a number or beyond all of them."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # too large a sum of finite terms; infinities of both signs
        return math.nan


def _power_of_two_below(weight: float) -> float:
    """The power of two ``c`` for which ``c * weight`` is at least a half and below one; 1 if there is none."""
    return 2.0 ** -math.frexp(weight)[1] if 0.0 < weight < math.inf else 1.0
