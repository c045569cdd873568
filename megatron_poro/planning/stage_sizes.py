"""What moments of a step are made of: a stage and the sizes of its tensors, and what a process holds at a moment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron_poro.config.run import Recompute
from megatron_poro.planning.layers import LayerSize
from megatron_poro.planning.pipeline import Held
from megatron_poro.planning.tensor_sizes import TensorSizes

_FP64, _INT64 = 8, 8


class Moment(NamedTuple):
    """Bytes of a process at one moment, beside weights, sums of gradients, optimizer and constants.

    Attributes:
        activations: what forward passes have left for backward passes.
        deferred: what backward passes have left for weight gradients that wait.
        working: what is made and dropped again on the way.
        head: logits and what the loss makes of them.
        buffers: what the stage received; under DualPipeV also the gradients that passes have used and will use, and the
            graph of the last loss.
    """

    activations: float
    deferred: float
    working: float
    head: float
    buffers: float


@dataclass(frozen=True)
class StageSizes:
    """What the moments of a stage are made of, in bytes.

    Attributes:
        layers: of the stage.
        sizes: of the tensors of a microbatch.
        held: most that passes have left behind on the rank for others while a microbatch is in this stage.
        of_one: what this microbatch leaves behind, of which its forward pass has done so already.
        defers: whether weight gradients are put off.
        microbatches: of a step.
        is_first: whether the stage is on the first pipeline rank.
        ranks_behind: pipeline ranks after it.
        in_order: whether the schedule is 1F1B.
        exact: whether gradients are added up in integers.
        share: numbers whose masters and moments the process keeps, of all its stages.
    """

    layers: Sequence[LayerSize]
    sizes: TensorSizes
    held: Held
    of_one: Held
    defers: bool
    microbatches: int
    is_first: bool
    ranks_behind: int
    in_order: bool
    exact: bool
    share: float

    @property
    def width(self) -> float:
        """One microbatch between two layers."""
        return self.sizes.width

    @property
    def waiting(self) -> int:
        """Other microbatches whose weight gradients wait."""
        return round(self.held.deferred / self.of_one.deferred) if self.held.deferred else 0

    @property
    def blocks(self) -> list[Recompute]:
        """What is recomputed of each block of the stage."""
        return [layer.recompute for layer in self.layers if layer.is_block]

    def adding(self, numbers: float) -> float:
        """What adding up a gradient of so many numbers makes: exact sums make fp64 of it, and integers of that."""
        return (_FP64 + _INT64) * numbers if self.exact else 0.0

    def has(self, role: str) -> bool:
        """Whether the stage has a layer."""
        return any(layer.role == role for layer in self.layers)
