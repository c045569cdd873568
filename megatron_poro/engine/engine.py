"""The seam between the training loop and what runs a step: one process with plain torch, or a DeepSpeed pipeline."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from torch import Tensor

from megatron_poro.data.batch import Batch
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.shards import ShardSpec

StepGate = Callable[[float, float], bool]
"""Decides from the loss and the gradient norm of a step whether it may change the weights."""


def accept_every_step(loss: float, grad_norm: float) -> bool:
    """The gate that lets every finite step pass."""
    return True


class StepResult(NamedTuple):
    """What one optimizer step did; the same on every process.

    Attributes:
        loss: weighted mean over the global batch (for next-token: mean over its loss tokens), scalar fp32.
        grad_norm: global L2 norm of the gradient before clipping, scalar fp32.
        source_loss_sums: fp32 ``[num_sources]``, sum of losses per source over the global batch.
        source_weights: fp32 ``[num_sources]``, number of loss tokens per source over the global batch.
        taken: whether the step changed the weights. A step that was refused has changed nothing, neither weights nor
            moments nor the optimizer's count.
    """

    loss: Tensor
    grad_norm: Tensor
    source_loss_sums: Tensor
    source_weights: Tensor
    taken: bool


class EvalResult(NamedTuple):
    """Loss of some batches without a step; sums over all data ranks, the same on every process.

    Attributes:
        source_loss_sums: fp32 ``[num_sources]``.
        source_weights: fp32 ``[num_sources]``.
    """

    source_loss_sums: Tensor
    source_weights: Tensor


class FragmentKind(str, Enum):
    """The three fp32 values kept per parameter element."""

    MASTER = "master"
    EXP_AVG = "exp_avg"
    EXP_AVG_SQ = "exp_avg_sq"


@dataclass(frozen=True)
class Fragment:
    """A flat piece of one fp32 value that this process holds: what a checkpoint is made of.

    Attributes:
        name: canonical parameter name, the same in every layout (``blocks.7.mlp.up.weight``).
        kind: which of the three values.
        flat: 1-D fp32, a view of the engine's own storage: writing into it changes the engine's state.
        start: position of ``flat[0]`` in the row-major flattened shard.
        shard: which slice of the full tensor the shard is.
        is_owner: whether this process writes it into a checkpoint; exactly one process does for each element.
            Every process reads its own on load, owner or not.
        is_decayed: whether the optimizer applies weight decay to the parameter.
    """

    name: str
    kind: FragmentKind
    flat: Tensor
    start: int
    shard: ShardSpec
    is_owner: bool
    is_decayed: bool = True


class CopyAxis(str, Enum):
    """Along which axis of the grid other processes hold the same values."""

    TENSOR = "tensor"
    """Norms and biases, which are not cut."""

    DATA = "data"
    """Everything that the optimizer does not share out among the replicas."""

    PIPELINE = "pipeline"
    """A weight that the first and the last stage share."""


WEIGHT = "weight"
"""Kind of a copy that is neither master nor moment: what the model computes with, rounded from the masters."""


@dataclass(frozen=True)
class Copy:
    """Values that other processes must hold bit for bit alike.

    Attributes:
        name: canonical parameter name.
        kind: ``WEIGHT``, or the value of a :class:`FragmentKind`.
        flat: 1-D, a view of the engine's own storage.
        part: tells apart pieces of one parameter: rank of the tensor shard, and where ``flat`` begins in it.
        axes: where its copies are.
    """

    name: str
    kind: str
    flat: Tensor
    part: tuple[int, int]
    axes: frozenset[CopyAxis]


class Engine(Protocol):
    """Runs steps on this process's part of a model. Every method is collective: all processes call it alike.

    ``groups.clock`` is told what the time of a step is spent on.
    """

    groups: ParallelGroups

    @property
    def needs_data(self) -> bool:
        """Whether this process reads batches (first and last pipeline stage); others are given an empty list."""
        ...

    def train_step(
        self,
        microbatches: Sequence[Batch],
        *,
        learning_rate: float,
        consumed_samples: int,
        gate: StepGate = accept_every_step,
    ) -> StepResult:
        """One optimizer step over this data rank's microbatches, in order.

        The step is refused on all processes alike if the loss or a gradient is not finite, or the gate of any process
        says no.

        Args:
            microbatches: as many as the step has, all of one shape; empty where ``needs_data`` is false.
            learning_rate: rate of this step.
            consumed_samples: samples of the run before this step; fixes the dropout masks.
            gate: asked once about a finite step, on every process, after the gradient is known and before it is used.
        """
        ...

    def eval_step(self, microbatches: Sequence[Batch]) -> EvalResult:
        """Loss without gradients. Any number of microbatches, equal on all data ranks."""
        ...

    def fragments(self) -> Iterator[Fragment]:
        """Everything a checkpoint must hold of this process, in an order that is the same on every run."""
        ...

    def copies(self) -> Iterator[Copy]:
        """What this process holds and others hold too, in an order that is the same wherever the same is held."""
        ...

    def load_finished(self, optimizer_step: int) -> None:
        """Call after writing into ``fragments()``: refreshes the weights and sets the optimizer's step count."""
        ...
